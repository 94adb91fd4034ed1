"""Discrete Fourier transforms as matrix products, which every runtime has.

Few runtimes have a transform, and some of those are wrong (OpenVINO over two axes) or unprecise (lengths that are
prime). A length of up to `DENSE` is one product with the matrix of the transform; a longer one is split into two
factors (Cooley and Tukey, Math. Comp. 19, 1965), a long prime into transforms of a power of two (Bluestein, 1970).
What must be zero is zero, and not rounding: the imaginary parts of the first and middle frequency of a real signal,
whose sign decides whether an angle is +pi or -pi.

`x` is transformed along its last axis but one: (..., length, columns) -> (..., frequencies, columns).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deploykit.capture.complex_pairs import Pair, Writer
from deploykit.capture.editor import Call, is_static, shape_of

aten = torch.ops.aten
Transform = Callable[[Pair], Pair]

DENSE = 128
"""Longest transform that is one product: a matrix of 256 x 256 (256 KiB) for complex numbers."""
LARGEST_PRIME = 512
"""Longest prime length that is one product."""

TRANSFORM = "transform"
"""Key of `Node.meta`: the product is a part of the Fourier transform that it names."""


def along(w: Writer, x: Pair, axis: int, transform: Transform) -> Pair:
    """Apply a transform of the last axis but one along any axis."""
    rank = len(shape_of(x.re))
    rest = [a for a in range(rank) if a != axis]
    if not rest or not is_static([shape_of(x.re)[rest[-1]]]):  # a dynamic axis stays a batch
        columns = _permuted(w, x, [*rest, axis])
        whole = transform(_each(lambda part: w(aten.unsqueeze.default, part, rank), columns))
        return _permuted(w, _each(lambda part: w(aten.squeeze.dim, part, rank), whole), _back([*rest, axis]))
    order = [*rest[:-1], axis, rest[-1]]
    return _permuted(w, transform(_permuted(w, x, order)), _back(order))


def _permuted(w: Writer, x: Pair, order: list[int]) -> Pair:
    return x if order == sorted(order) else _each(lambda part: w(aten.permute.default, part, order), x)


def _back(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _each(change: Callable[[Call], Call], x: Pair) -> Pair:
    """Change every part that is there."""
    return Pair(*(None if part is None else change(part) for part in (x.re, x.im)))


def real_half(w: Writer, x: Call, scale: float = 1.0) -> Pair:
    """A real signal -> its first n // 2 + 1 frequencies."""
    n = shape_of(x)[-2]
    count = n // 2 + 1
    inner = slice(1, count - (n % 2 == 0))
    if n <= DENSE or _is_long_prime(n):
        cos, sin = _waves(n, range(count), scale)
        rows = _product(w, torch.cat([cos, -sin[inner]]), x)
        return _with_zeros(w, w.slice(rows, _rows(rows), 0, count), w.slice(rows, _rows(rows), count, n), n)
    whole = complex_whole(w, Pair(x, None), scale=scale)
    axis = _rows(whole.re)
    im = w.slice(whole.im, axis, inner.start, inner.stop)
    return _with_zeros(w, w.slice(whole.re, axis, 0, count), im, n)


def _with_zeros(w: Writer, re: Call, inner: Call, n: int) -> Pair:
    """Put the zeros of the first and the middle frequency around the imaginary parts between them."""
    if n <= 2:
        return Pair(re, None)
    return Pair(re, w.pad(inner, _rows(inner), 1, int(n % 2 == 0)))


def mirrored(w: Writer, half: Pair, n: int) -> Pair:
    """The first n // 2 + 1 frequencies of a real signal -> all n: the others are their conjugates."""
    if n <= 2:
        return half
    axis = _rows(half.re)

    def rest(part: Any) -> Any:
        return None if part is None else w(aten.flip.default, w.slice(part, axis, 1, (n + 1) // 2), [axis])

    re = w(aten.cat.default, [half.re, rest(half.re)], axis)
    return Pair(re, None if half.im is None else w(aten.cat.default, [half.im, w.neg(rest(half.im))], axis))


def real_of_half(w: Writer, half: Pair, n: int, scale: float = 1.0) -> Call:
    """The inverse of `real_half`, without 1/n; what the first and middle frequency have of imaginary is not read."""
    count = n // 2 + 1
    axis = _rows(half.re)
    im = w.slice(half.im, axis, 1, count - (n % 2 == 0)) if n > 2 else None
    if n <= DENSE or _is_long_prime(n):
        cos, sin = _waves(n, range(count), scale)
        weight = torch.full((count, 1), 2.0, dtype=torch.float64)
        weight[0] = 1.0
        if n % 2 == 0:
            weight[-1] = 1.0
        both = [cos * weight] if im is None else [cos * weight, (-sin * weight)[1 : count - (n % 2 == 0)]]
        stacked = half.re if im is None else w(aten.cat.default, [half.re, im], axis)
        return _product(w, torch.cat(both).t(), stacked)
    whole = mirrored(w, Pair(half.re, w.pad(im, axis, 1, int(n % 2 == 0))), n)
    return complex_whole(w, whole, inverse=True, scale=scale, real=True).re


def complex_whole(w: Writer, x: Pair, *, inverse: bool = False, scale: float = 1.0, real: bool = False) -> Pair:
    """All frequencies of a complex signal.

    Args:
        inverse: the transform back, without 1/n.
        real: the imaginary part of the result is not wanted.
    """
    n = shape_of(x.re)[-2]
    first = max((d for d in range(1, math.isqrt(n) + 1) if n % d == 0), default=1)
    if n <= DENSE or (first == 1 and n <= LARGEST_PRIME):
        return _dense(w, x, inverse, scale, real)
    if first == 1:
        return _bluestein(w, x, inverse, scale)
    return _split(w, x, first, inverse, scale, real)


def _dense(w: Writer, x: Pair, inverse: bool, scale: float, real: bool) -> Pair:
    n = shape_of(x.re)[-2]
    cos, sin = _waves(n, range(n), scale)
    sin = -sin if inverse else sin
    matrix = cos if real else torch.cat([cos, -sin])
    stacked = x.re
    if x.im is not None:
        of_im = sin if real else torch.cat([sin, cos])
        matrix = torch.cat([matrix, of_im], 1)
        stacked = w(aten.cat.default, [x.re, x.im], _rows(x.re))
    rows = _product(w, matrix, stacked)
    if real:
        return Pair(rows, None)
    axis = _rows(rows)
    return Pair(w.slice(rows, axis, 0, n), w.slice(rows, axis, n, 2 * n))


def _split(w: Writer, x: Pair, first: int, inverse: bool, scale: float, real: bool) -> Pair:
    """n = first * second: transforms of `first`, a turn of each result, transforms of `second`."""
    n, axis = shape_of(x.re)[-2], _rows(x.re)
    second = n // first
    x = _folded(w, _unfolded(w, x, axis, first), axis + 1)
    x = _unfolded(w, complex_whole(w, x, inverse=inverse), axis + 1, second)
    steps = torch.outer(torch.arange(first), torch.arange(second)).double() * (2 * math.pi / n)
    x = w.times(x, _stored(w, torch.polar(torch.ones_like(steps), steps if inverse else -steps), x.re))
    order = [*range(axis), axis + 1, axis, axis + 2]
    x = _folded(w, _each(lambda part: w(aten.permute.default, part, order), x), axis + 1)
    x = complex_whole(w, x, inverse=inverse, scale=scale, real=real)
    return _folded(w, _unfolded(w, x, axis + 1, first), axis)


def _unfolded(w: Writer, x: Pair, axis: int, size: int) -> Pair:
    """One axis as two, the first of them of `size`."""
    return _each(lambda part: w(aten.unflatten.int, part, axis, [size, -1]), x)


def _folded(w: Writer, x: Pair, axis: int) -> Pair:
    """An axis and the one behind it as one."""
    return _each(lambda part: w(aten.flatten.using_ints, part, axis, axis + 1), x)


def _bluestein(w: Writer, x: Pair, inverse: bool, scale: float) -> Pair:
    """A prime length: n k = (n^2 + k^2 - (n - k)^2) / 2 makes a convolution of it, of a length that can be split."""
    n, axis = shape_of(x.re)[-2], _rows(x.re)
    size = 1 << (2 * n - 2).bit_length()
    squares = torch.arange(n, dtype=torch.int64).square() % (2 * n)
    angle = squares.double() * (math.pi / n) * (1 if inverse else -1)
    chirp = torch.polar(torch.ones_like(angle), angle)
    kernel = torch.zeros(size, dtype=torch.complex128)
    kernel[:n] = chirp.conj()
    kernel[size - n + 1 :] = chirp.conj()[1:].flip(0)
    spectrum = torch.fft.fft(kernel) * (scale / size)
    x = w.times(x, _stored(w, chirp, x.re))
    x = Pair(w.pad(x.re, axis, 0, size - n), w.pad(x.im, axis, 0, size - n))
    x = w.times(complex_whole(w, x), _stored(w, spectrum, x.re))
    x = complex_whole(w, x, inverse=True)
    x = Pair(w.slice(x.re, axis, 0, n), w.slice(x.im, axis, 0, n))
    return w.times(x, _stored(w, chirp, x.re))


def _stored(w: Writer, factors: Tensor, like: Call) -> Pair:
    """Complex factors, one for each row, as constants of the dtype of `like`."""
    parts = (part[..., None].to(like.meta["val"].dtype) for part in (factors.real, factors.imag))
    return Pair(*map(w.constant, parts))


def _waves(n: int, frequencies: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi k t / n, float64, shape (frequencies, n), times `scale`; exact where they are 0 or 1."""
    turns = torch.outer(torch.tensor(list(frequencies)), torch.arange(n)) % n
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    cos, sin = angle.cos(), angle.sin()
    for quarter, (c, s) in enumerate(((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))):
        if quarter * n % 4 == 0:
            cos[quarter * n // 4], sin[quarter * n // 4] = c, s
    return cos[turns] * scale, sin[turns] * scale


def _product(w: Writer, matrix: Tensor, x: Call) -> Call:
    """matrix @ x, marked as a part of the transform that is replaced."""
    product = w(aten.matmul.default, w.constant(matrix.to(x.meta["val"].dtype)), x)
    product.meta[TRANSFORM] = w.node.target._schema.name.split("::")[1]
    return product


def _rows(x: Call) -> int:
    return len(shape_of(x)) - 2


def _is_long_prime(n: int) -> bool:
    """Whether a length has no factors and is still short enough for one product."""
    return n <= LARGEST_PRIME and all(n % d for d in range(2, math.isqrt(n) + 1))
