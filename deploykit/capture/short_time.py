"""`stft` and `istft` as frames, a window and Fourier transforms, in operators that every runtime has.

Frames are cut out of pieces as long as the greatest common divisor of hop and length, by slices of whole pieces; with
many pieces (a hop that has no common factor with the length) by indices of pieces.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from deploykit.capture.complex_pairs import Pair, Writer
from deploykit.capture.editor import Call, is_static, shape_of
from deploykit.capture.fourier import complex_whole, mirrored, real_half, real_of_half

aten = torch.ops.aten

_MOST_SLICES = 16


def stft(
    w: Writer,
    x: Any,
    n_fft: int,
    hop: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:
    """(samples) or (batch, samples) -> (..., frequencies, frames)."""
    signal, hop = w.pair(x), hop or n_fft // 4
    if align_to_window or isinstance(window, Pair) or not is_static(shape_of(signal.re)[-1:]):
        raise w.refuse(
            "a short-time transform of dynamic length, with a complex window or align_to_window",
            "capture with a fixed number of samples; use a real window",
        )
    one = signal.im is None if onesided is None else onesided
    scale = n_fft**-0.5 if normalized else 1.0
    parts = [_windowed(w, part, n_fft, hop, win_length, window) for part in (signal.re, signal.im) if part is not None]
    if len(parts) == 2:
        result = complex_whole(w, Pair(*parts), scale=scale)
    else:
        result = real_half(w, parts[0], scale)
        result = result if one else mirrored(w, result, n_fft)
    if len(shape_of(signal.re)) == 1:
        result = Pair(*(None if p is None else w(aten.squeeze.dim, p, 0) for p in (result.re, result.im)))
    re, im = w.tensors(result)
    return Pair(re, im) if w.val.is_complex() else w(aten.stack.default, [re, im], len(shape_of(re)))


def centred_stft(
    w: Writer,
    x: Any,
    n_fft: int,
    hop: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    center: bool = True,
    pad_mode: str = "reflect",
    *rest: Any,
) -> Any:
    """`stft.center`: pads the signal first."""
    if center:
        value = w.pair(x)
        x = Pair(*(None if p is None else _padded(w, p, n_fft // 2, pad_mode) for p in (value.re, value.im)))
    return stft(w, x, n_fft, hop, win_length, window, *rest)


def _padded(w: Writer, x: Call, margin: int, mode: str) -> Call:
    if len(shape_of(x)) > 1:
        return w(aten.pad.default, x, [margin, margin], mode)
    return w(aten.squeeze.dim, w(aten.pad.default, w(aten.unsqueeze.default, x, 0), [margin, margin], mode), 0)


def _windowed(w: Writer, x: Call, n_fft: int, hop: int, win_length: int | None, window: Any) -> Call:
    """Frames times the window, (batch, n_fft, frames)."""
    x = x if len(shape_of(x)) == 2 else w(aten.unsqueeze.default, x, 0)
    framed = _frames(w, x, n_fft, hop)
    own = _window(w, n_fft, win_length, window, x)
    return framed if own is None else w(aten.mul.Tensor, framed, own)


def _window(w: Writer, n_fft: int, win_length: int | None, window: Any, like: Call) -> Call | None:
    """The window as a column of n_fft, a shorter one in the middle of zeros; None where all are one."""
    length = win_length or n_fft
    if window is None and length == n_fft:
        return None
    if window is None:
        window = w.constant(torch.ones(length, dtype=like.meta["val"].dtype))
    before = (n_fft - length) // 2
    padded = w.pad(window, 0, before, n_fft - length - before)
    return w(aten.unsqueeze.default, padded, 1)


def _frames(w: Writer, x: Call, n_fft: int, hop: int) -> Call:
    """(batch, samples) -> (batch, n_fft, frames)."""
    count = 1 + (shape_of(x)[-1] - n_fft) // hop
    unit = math.gcd(n_fft, hop)
    pieces, step = n_fft // unit, hop // unit
    whole = (shape_of(x)[-1] // unit) * unit
    units = w(aten.unflatten.int, w.slice(x, 1, 0, whole), 1, [-1, unit])  # (batch, units, unit)
    if pieces > _MOST_SLICES:
        index = torch.arange(pieces)[:, None] + torch.arange(count)[None] * step
        taken = w(aten.index_select.default, units, 1, w.constant(index.flatten()))
        taken = w(aten.unflatten.int, taken, 1, [pieces, count])
        taken = w(aten.permute.default, taken, [0, 1, 3, 2])
        return w(aten.flatten.using_ints, taken, 1, 2)
    cut = [w.slice(units, 1, i, i + step * (count - 1) + 1, step) for i in range(pieces)]
    joined = cut[0] if pieces == 1 else w(aten.cat.default, cut, 2)
    return w(aten.permute.default, joined, [0, 2, 1])


def istft(
    w: Writer,
    x: Pair,
    n_fft: int,
    hop: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Any:
    """(..., frequencies, frames) -> (samples) or (batch, samples): frames are added up and divided by the windows."""
    hop, shape = hop or n_fft // 4, shape_of(x.re)
    if return_complex or isinstance(window, Pair) or not is_static(shape[-2:]):
        raise w.refuse(
            "an inverse short-time transform that is complex or of dynamic length",
            "capture with a fixed number of frames, for a real signal",
        )
    single = len(shape) == 2
    if single:
        x = Pair(*(None if p is None else w(aten.unsqueeze.default, p, 0) for p in (x.re, x.im)))
    scale = (n_fft**0.5 if normalized else 1.0) / n_fft
    if onesided is None or onesided:
        framed = real_of_half(w, x, n_fft, scale)
    else:
        framed = complex_whole(w, x, inverse=True, scale=scale, real=True).re
    y = _overlap_added(w, framed, _window(w, n_fft, win_length, window, framed), n_fft, hop)
    end = shape_of(y)[1] - (n_fft // 2 if center and length is None else 0)
    start = n_fft // 2 if center else 0
    result = _cut(w, y, start, end if length is None else start + length)
    return w(aten.squeeze.dim, result, 0) if single else result


def _cut(w: Writer, y: Call, start: int, end: int) -> Call:
    """A part of the signal, with zeros where it is asked for more than there is."""
    have = shape_of(y)[1]
    part: Call = w.slice(y, 1, start, min(end, have))
    return part if end <= have else w.pad(part, 1, 0, end - have)


def _overlap_added(w: Writer, framed: Call, window: Call | None, n_fft: int, hop: int) -> Call:
    """Windowed frames added at their places, over the sum of the squared windows there."""
    count = shape_of(framed)[-1]
    weighted = framed if window is None else w(aten.mul.Tensor, framed, window)
    ones = w.constant(torch.ones(1, n_fft, count, dtype=framed.meta["val"].dtype))
    squares = ones if window is None else w(aten.mul.Tensor, ones, w(aten.mul.Tensor, window, window))
    total, weights = (_added(w, each, n_fft, hop) for each in (weighted, squares))
    nothing = w(aten.eq.Scalar, weights, 0.0)  # before the first and behind the last window, which are cut off
    return w(aten.div.Tensor, total, w(aten.masked_fill.Scalar, weights, nothing, 1.0))


def _added(w: Writer, framed: Call, n_fft: int, hop: int) -> Call:
    """(batch, n_fft, frames) -> (batch, samples): every frame added where it belongs."""
    count, unit = shape_of(framed)[-1], math.gcd(n_fft, hop)
    pieces, step = n_fft // unit, hop // unit
    if pieces > _MOST_SLICES:
        eye = w.constant(torch.eye(n_fft, dtype=framed.meta["val"].dtype)[:, None])
        return w(aten.squeeze.dim, w(aten.conv_transpose1d.default, framed, eye, None, [hop]), 1)
    parts = w(aten.permute.default, w(aten.unflatten.int, framed, 1, [pieces, unit]), [0, 1, 3, 2])
    total = None
    for i in range(pieces):
        part = w(aten.select.int, parts, 1, i)  # (batch, frames, unit)
        if step > 1:  # units between two frames
            part = w.pad(w(aten.unsqueeze.default, part, 2), 2, 0, step - 1)
            part = w(aten.flatten.using_ints, part, 1, 2)
        total = w.add(total, w.pad(part, 1, i, pieces - 1 - i))
    return w.slice(w(aten.flatten.using_ints, total, 1, 2), 1, 0, n_fft + hop * (count - 1))
