"""The operators of `torch.fft`: axes, lengths, factors and halves, around the transforms of one axis in `fourier`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from deploykit.capture import fourier
from deploykit.capture.complex_pairs import Pair, Writer
from deploykit.capture.editor import Call, is_static, rank_of, shape_of

Rule = Callable[..., Any]


def _scale(norm: Any, count: int, *, inverse: bool) -> float:
    """Factor of a transform: by default 1/n on the way back, `forward` the other way round, `ortho` on both."""
    if norm == "ortho":
        return float(count**-0.5)
    return 1 / count if (norm == "forward") != inverse else 1.0


def _transform(*, inverse: bool = False, half: str = "", axes: int | None = 1) -> Rule:
    """The rule of a transform.

    Args:
        half: the side that has half of the frequencies: `out`, `in`, or "" for neither.
        axes: how many axes are transformed by default, from the last; None: all of them.
    """

    def rule(w: Writer, x: Any, sizes: Any = None, dim: Any = None, norm: Any = None) -> Any:
        value = w.pair(x)
        rank = rank_of(value.re)
        lengths = None if sizes is None else list(sizes) if isinstance(sizes, list | tuple) else [sizes]
        if dim is None:
            count = len(lengths) if axes is None and lengths else rank if axes is None else axes
            dim = list(range(rank - count, rank))
        dims = [d % rank for d in (dim if isinstance(dim, list | tuple) else [dim])]
        return _along_all(w, value, dims, lengths, norm, inverse=inverse, half=half)

    return rule


def _along_all(
    w: Writer, x: Pair, dims: list[int], lengths: list[int | None] | None, norm: Any, *, inverse: bool, half: str
) -> Any:
    have = [shape_of(x.re)[d] for d in dims]
    wanted = [n if n is not None and n > 0 else None for n in ([None] * len(dims) if lengths is None else lengths)]
    full = [2 * (h - 1) if half == "in" and i == len(dims) - 1 else h for i, h in enumerate(have)]
    long = [n or f for n, f in zip(wanted, full, strict=True)]
    if not is_static((*have, *long)):
        raise w.refuse("a Fourier transform along an axis of dynamic size", "capture with a fixed size of that axis")
    for i, (axis, n) in enumerate(zip(dims, long, strict=True)):
        x = _resized(w, x, axis, n // 2 + 1 if half == "in" and i == len(dims) - 1 else n)
    return _primitive(w, x, dims, long[-1], _scale(norm, math.prod(long), inverse=inverse), inverse, half)


def _primitive(w: Writer, x: Pair, dims: list[int], last: int, scale: float, inverse: bool, half: str) -> Any:
    """The last axis in its form, the others whole; a half that comes in is transformed last."""
    if x.im is None and half != "in" and not inverse:
        x = fourier.along(w, x, dims[-1], lambda p: _of_real(w, p, last, scale, half))
        return _whole_axes(w, x, dims[:-1], inverse)
    if half == "in":
        x = _whole_axes(w, x, dims[:-1], inverse)
        return fourier.along(w, x, dims[-1], lambda p: Pair(fourier.real_of_half(w, p, last, scale), None)).re
    x = fourier.along(w, x, dims[-1], lambda p: fourier.complex_whole(w, p, inverse=inverse, scale=scale))
    return _whole_axes(w, x, dims[:-1], inverse)


def _of_real(w: Writer, x: Pair, n: int, scale: float, half: str) -> Pair:
    found = fourier.real_half(w, x.re, scale)
    return found if half else fourier.mirrored(w, found, n)


def _whole_axes(w: Writer, x: Pair, dims: list[int], inverse: bool) -> Pair:
    for axis in dims:
        x = fourier.along(w, x, axis, lambda p: fourier.complex_whole(w, p, inverse=inverse))
    return x


def _resized(w: Writer, x: Pair, axis: int, size: int) -> Pair:
    have = shape_of(x.re)[axis]
    parts = (w.pad(w.slice(p, axis, 0, min(size, have)), axis, 0, max(size - have, 0)) for p in (x.re, x.im))
    return Pair(*parts)


def _hermitian(*, inverse: bool, axes: int | None = 1) -> Rule:
    """hfft is the real transform back of the conjugate, ihfft the conjugate of the transform: with the other factor."""
    plain = _transform(inverse=not inverse, half="out" if inverse else "in", axes=axes)
    swapped = {None: "forward", "backward": "forward", "forward": "backward", "ortho": "ortho"}

    def rule(w: Writer, x: Any, sizes: Any = None, dim: Any = None, norm: Any = None) -> Any:
        if inverse:
            return w.conj(plain(w, x, sizes, dim, swapped[norm]))
        return plain(w, w.conj(w.pair(x)), sizes, dim, swapped[norm])

    return rule


def _core_scale(x: Pair, dims: list[int], normalization: int, last: int | None = None) -> float:
    sizes = [shape_of(x.re)[d] for d in dims]
    count = math.prod(sizes if last is None else [*sizes[:-1], last])
    return (1.0, count**-0.5, 1 / count)[normalization]


def _r2c(w: Writer, x: Call, dims: list[int], normalization: int, onesided: bool) -> Any:
    value, last = Pair(x, None), shape_of(x)[dims[-1]]
    scale = _core_scale(value, dims, normalization)
    return _primitive(w, value, list(dims), last, scale, False, "out" if onesided else "")


def _c2c(w: Writer, x: Pair, dims: list[int], normalization: int, forward: bool) -> Any:
    scale = _core_scale(x, dims, normalization)
    return _primitive(w, x, list(dims), shape_of(x.re)[dims[-1]], scale, not forward, "")


def _c2r(w: Writer, x: Pair, dims: list[int], normalization: int, last: int) -> Any:
    scale = _core_scale(x, dims, normalization, last)
    return _primitive(w, x, list(dims), last, scale, True, "in")


RULES: dict[str, Rule] = {
    "fft_fft": _transform(),
    "fft_ifft": _transform(inverse=True),
    "fft_rfft": _transform(half="out"),
    "fft_irfft": _transform(inverse=True, half="in"),
    "fft_hfft": _hermitian(inverse=False),
    "fft_ihfft": _hermitian(inverse=True),
    "fft_fft2": _transform(axes=2),
    "fft_ifft2": _transform(inverse=True, axes=2),
    "fft_rfft2": _transform(half="out", axes=2),
    "fft_irfft2": _transform(inverse=True, half="in", axes=2),
    "fft_fftn": _transform(axes=None),
    "fft_ifftn": _transform(inverse=True, axes=None),
    "fft_rfftn": _transform(half="out", axes=None),
    "fft_irfftn": _transform(inverse=True, half="in", axes=None),
    "_fft_r2c": _r2c,
    "_fft_c2c": _c2c,
    "_fft_c2r": _c2r,
}
"""Operator -> its rule."""
