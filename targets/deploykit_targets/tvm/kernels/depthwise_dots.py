# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Depthwise convolution of bytes by dot products: four neighbouring pixels of each channel are brought side by side.

An instruction that sums four products into a lane wants the four inputs of a channel beside each other, where an image
has the channels of a pixel. Interleaving four pixels takes six to eight instructions for sixteen channels, and what
comes of it serves two outputs: with weights that start at the first pixel, and with the same one pixel later. That is
less than widening every input to 16 bits for every tap, as `depthwise` does.

Refused (`fits`): fewer channels than a vector, dilation in a line, strides beyond two; `depthwise` has these.
"""

from __future__ import annotations

import math

import numpy as np
from tvm.script import tirx as T

from deploykit_targets.tvm.kernels.conv_plan import ConvShape
from deploykit_targets.tvm.kernels.expressions import (
    Expr,
    bounded,
    cast,
    fill,
    limits_of,
    on_stack,
    quantized,
    span,
    vector_start,
)
from deploykit_targets.tvm.kernels.isa import Dot
from deploykit_targets.tvm.kernels.line_tile import LineTile
from deploykit_targets.tvm.kernels.packing import BIASED_ZERO, Array, Bounded

_CHANNELS = 16  # of a vector: bytes of a register
_TAPS = 4  # that one dot product sums
_FINISHED = 8  # channels that are finished at once
_PIXELS = 4


def fits(shape: ConvShape, dot: Dot) -> bool:
    """Whether this kernel takes a depthwise convolution."""
    near = shape.dilation[1] == 1 and shape.stride[1] in (1, 2) and shape.output[1] >= 2
    return None not in (dot.across, dot.saturate) and shape.channels >= _CHANNELS and near


def pack_depthwise_dots(shape: ConvShape, weight: Array) -> Array:
    """Pack weights for `depthwise_dots`.

    Args:
        weight: int8, shape (channels, 1, kernel height, kernel width), as PyTorch has it.
    Returns:
        int8, flat: rows of the window, pixels by which they are shifted, groups of four taps, channels, taps.
    """
    tile, (kernel_h, kernel_w) = _Tile(shape), shape.kernel
    packed = np.zeros((kernel_h, tile.shifts, tile.groups * _TAPS, shape.channels), np.int8)
    for shift in range(tile.shifts):
        packed[:, shift, shift : shift + kernel_w] = weight[:, 0].transpose(1, 2, 0)
    grouped = packed.reshape(kernel_h, tile.shifts, tile.groups, _TAPS, shape.channels)
    return np.ascontiguousarray(grouped.swapaxes(3, 4)).ravel()


def pack_depthwise_bounded(shape: ConvShape, small: Bounded) -> Array:
    """Constants of sums that are small: scales, each pixel's starts, zero points; see `conv_plan.ConvPlan.copies`."""
    start = (small.start.astype(np.int64) + BIASED_ZERO).astype(np.int32).view(np.float32)
    pixels = _Tile(shape).pixels
    zero_points = np.full(pixels * _CHANNELS, 1.5 * 2**23 + small.zero_point, np.float32)
    return np.concatenate([small.scale, *[start] * pixels, zero_points])


def depthwise_dots(
    shape: ConvShape,
    dot: Dot,
    *,
    limits: tuple[float, float] | None = None,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    zero: int = 0,
    small: bool = False,
) -> Expr:
    """Generate the kernel: (input, packed weights, constants, output), flat.

    Args:
        shape, limits, padding, zero: as `depthwise.depthwise` has them.
        small: whether the constants are those of `pack_depthwise_bounded`; else they are those of `depthwise`.
    """
    channels, kernel_h, (height, width) = shape.channels, shape.kernel[0], shape.output
    tile, pixels, lanes = _Tile(shape, padding), _Tile(shape).pixels, _CHANNELS
    vectors, lines, (first, last) = math.ceil(channels / lanes), shape.batch * height, tile.inner
    outside, across, saturate = fill(zero, "int8", lanes), dot.across, dot.saturate
    constants_of = (1 + pixels) * channels + pixels * lanes if small else 2 * channels
    assert across is not None and saturate is not None

    def column(a: Expr, line: Expr, x: Expr, ky: Expr, index: int, c: Expr, cut: bool) -> Expr:
        inputs = a[span(tile.read(line, x, ky, index) + c, lanes)]
        return T.if_then_else(tile.meets_column(x, index), inputs, outside) if cut else inputs

    def four(a: Expr, line: Expr, x: Expr, ky: Expr, index: int, c: Expr, cut: bool) -> Expr:
        """Four neighbouring pixels of sixteen channels, channel by channel."""
        columns = [column(a, line, x, ky, index + i, c, cut) for i in range(_TAPS)]
        pairs = [T.reinterpret("int16x16", _interleaved(columns[i : i + 2], lanes)) for i in (0, 2)]
        return T.reinterpret("int8x64", _interleaved(pairs, lanes))

    def weights_at(ky: Expr, r: int, group: int, c: Expr) -> Expr:
        position = (ky * tile.shifts + tile.shift(r)) * tile.groups + group
        return span((position * channels + c) * _TAPS, lanes * _TAPS)

    def finish(acc: Expr, constants: Expr, c: Expr, r: int) -> Expr:
        value = cast(acc, "float32", lanes) * constants[span(c, lanes)] + constants[span(channels + c, lanes)]
        return quantized(value, limits or limits_of("int8"), "int8", lanes)

    def finish_small(acc: Expr, constants: Expr, c: Expr, r: int, half: int) -> Expr:
        zero_point = constants[span((1 + pixels) * channels + r * lanes + half, _FINISHED)]
        scale = constants[span(c + half, _FINISHED)]
        return bounded(acc, scale, zero_point, _FINISHED, limits or limits_of("int8"), saturate)

    @T.inline
    def start(acc, constants, c):
        for r in T.unroll(pixels):
            if small:
                acc[span(r * lanes, lanes)] = T.reinterpret("int32x16", constants[span((1 + r) * channels + c, lanes)])
            else:
                acc[span(r * lanes, lanes)] = fill(0, "int32", lanes)

    @T.inline
    def add_row(acc, a, w, line, x, ky, c, cut):
        for r in T.unroll(pixels):
            for group in T.unroll(tile.groups):
                acc[span(r * lanes, lanes)] = across(
                    acc[span(r * lanes, lanes)],
                    four(a, line, x, ky, tile.first(r) + group * _TAPS, c, cut),
                    w[weights_at(ky, r, group, c)],
                )

    @T.inline
    def add_outside(acc, w, ky, c):
        """A row of the window that meets no data."""
        if zero != 0:
            for r in T.unroll(pixels):
                for group in T.unroll(tile.groups):
                    acc[span(r * lanes, lanes)] = across(
                        acc[span(r * lanes, lanes)], fill(zero, "int8", lanes * _TAPS), w[weights_at(ky, r, group, c)]
                    )

    @T.inline
    def pixels_of(a, w, constants, y, line, x, c, cut):
        acc_at: T.let = on_stack(pixels * lanes, "int32")
        acc = T.decl_buffer((pixels * lanes,), "int32", data=acc_at, scope="local")
        start(acc, constants, c)
        for ky in T.unroll(kernel_h):
            if tile.meets_row(line, ky):
                add_row(acc, a, w, line, x, ky, c, cut)
            else:
                add_outside(acc, w, ky, c)
        for r in T.unroll(pixels):
            if small:
                for half in T.unroll(lanes // _FINISHED):
                    y[span((line * width + tile.pixel(x) + r) * channels + c + half * _FINISHED, _FINISHED)] = (
                        finish_small(
                            acc[span(r * lanes + half * _FINISHED, _FINISHED)], constants, c, r, half * _FINISHED
                        )
                    )
            else:
                y[span((line * width + tile.pixel(x) + r) * channels + c, lanes)] = finish(
                    acc[span(r * lanes, lanes)], constants, c, r
                )

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((tile.input_elements,), "int8"),
        w: T.Buffer((kernel_h * tile.shifts * tile.groups * channels * _TAPS,), "int8"),
        c: T.Buffer((constants_of,), "float32"),
        y: T.Buffer((lines * width * channels,), "int8"),
    ):
        T.func_attr({"tirx.noalias": True})
        for line in T.parallel(lines):
            for v in T.serial(vectors):
                for x in T.unroll(first):
                    pixels_of(a, w, c, y, line, x, vector_start(v, lanes, channels), True)
                for x in T.serial(last - first):
                    pixels_of(a, w, c, y, line, x + first, vector_start(v, lanes, channels), False)
                for x in T.unroll(tile.spans - last):
                    pixels_of(a, w, c, y, line, x + last, vector_start(v, lanes, channels), True)

    return kernel


def _interleaved(parts: list[Expr], lanes: int) -> Expr:
    """Of two vectors: first elements, second elements, and so on."""
    return T.Shuffle(parts, [part * lanes + lane for lane in range(lanes) for part in range(2)])


class _Tile(LineTile):
    """A tile whose pixels take fours of columns, which neighbours share."""

    @property
    def shifts(self) -> int:
        """Outputs that four columns serve: two with stride one."""
        return 2 // self.shape.stride[1]

    @property
    def groups(self) -> int:
        """Fours of taps of a row of the window, shifted as far as any is."""
        return math.ceil((self.shape.kernel[1] + self.shifts - 1) / _TAPS)

    @property
    def pixels(self) -> int:
        """See `LineTile`."""
        return _PIXELS if self.shape.output[1] >= _PIXELS else 2

    @property
    def columns(self) -> int:
        """See `LineTile`."""
        return int(self.first(self.pixels - 1)) + self.groups * _TAPS

    def shift(self, r: Expr) -> Expr:
        """How many columns after the first of its fours the window of pixel `r` starts."""
        return r % self.shifts

    def first(self, r: Expr) -> Expr:
        """The first column, of the tile's, of the fours that pixel `r` takes."""
        return r // self.shifts * 2
