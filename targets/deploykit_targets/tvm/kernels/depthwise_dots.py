# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Depthwise convolution of bytes by dot products: four pixels of each channel, one below the other, side by side.

An instruction that sums four products into a lane wants the four inputs of a channel beside each other, where an image
has the channels of a pixel. Interleaving four rows of a column takes eight instructions for sixteen channels; the
neighbours in a line that read the column share what comes of it, and so do two lines: with weights that start at the
first row, and with the same one row later. That is less than widening every input to 16 bits for every tap, as
`depthwise` does.

Refused (`fits`): fewer channels than a vector, pixels further apart than a window is wide; `depthwise` has these.
"""

from __future__ import annotations

import math

import numpy as np

from deploykit_targets.tvm.kernels.conv_plan import ConvShape
from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.kernels.expressions import (
    Expr,
    bounded,
    cast,
    fill,
    in_turn,
    limits_of,
    on_stack,
    quantized,
    saturated,
    span,
    vector_start,
)
from deploykit_targets.tvm.kernels.line_tile import LineTile
from deploykit_targets.tvm.kernels.packing import Array, Bounded
from deploykit_targets.tvm.kernels.script import T

_CHANNELS = 16  # of a vector: bytes of a register
_TAPS = 4  # that one dot product sums
_FINISHED = 8  # channels that are finished at once
_MOST_PIXELS = 8
_PIXEL_COLUMNS = 5  # what a pixel takes otherwise, in columns that are brought side by side


def fits(shape: ConvShape, dot: Dot) -> bool:
    """Whether this kernel takes a depthwise convolution."""
    near = shape.stride[1] <= (shape.kernel[1] - 1) * shape.dilation[1] + 1
    return None not in (dot.depthwise.across, dot.saturate) and shape.channels >= _CHANNELS and near


def pack_depthwise_dots(shape: ConvShape, weight: Array) -> Array:
    """Pack weights for `depthwise_dots`.

    Args:
        weight: int8, shape (channels, 1, kernel height, kernel width), as PyTorch has it.
    Returns:
        int8, flat: columns of the window, lines of a tile, groups of four rows, channels, rows.
    """
    tile, (kernel_h, kernel_w) = _Tile(shape), shape.kernel
    packed = np.zeros((kernel_w, tile.high, tile.groups * _TAPS, shape.channels), np.int8)
    for r in range(tile.high):
        packed[:, r, r : r + kernel_h] = weight[:, 0].transpose(2, 1, 0)
    grouped = packed.reshape(kernel_w, tile.high, tile.groups, _TAPS, shape.channels)
    return np.ascontiguousarray(grouped.swapaxes(3, 4)).ravel()


def pack_depthwise_bounded(small: Bounded) -> Array:
    """Constants of sums that are small: scales, starts and shifts."""
    return np.concatenate([small.scale, small.start.view(np.float32), small.shift])


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
    tile, lanes, channels, kernel_w = _Tile(shape, padding), _CHANNELS, shape.channels, shape.kernel[1]
    (height, width), (first, last), pixels, high, groups = shape.output, tile.inner, tile.pixels, tile.high, tile.groups
    vectors, pairs, outside = math.ceil(channels / lanes), math.ceil(height / high), fill(zero, "int8", lanes)
    across, saturate, constants_of = dot.depthwise.across, dot.saturate, (3 if small else 2) * channels
    assert across is not None and saturate is not None

    def line_of(task: Expr) -> Expr:
        """The upper line of a tile, over all images."""
        return task // pairs * height + vector_start(task % pairs, high, height)

    def input_of(a: Expr, line: Expr, x: Expr, row: Expr, column: Expr, c: Expr, edge: bool, end: bool) -> Expr:
        inputs = a[span(tile.read(line, x, row, column, within=edge) + c, lanes)]
        if edge:
            inputs = T.Select(tile.meets_row(line, row), inputs, outside)
        return T.if_then_else(tile.meets_column(x, column), inputs, outside) if end else inputs

    def four(a: Expr, line: Expr, x: Expr, column: Expr, group: Expr, c: Expr, edge: bool, end: bool) -> Expr:
        """Four rows of a column of sixteen channels, channel by channel; behind the last row, that one again."""
        rows = [T.min(group * _TAPS + i, tile.rows - 1) for i in range(_TAPS)]
        inputs = [input_of(a, line, x, row, column, c, edge, end) for row in rows]
        neighbours = [T.reinterpret("int16x16", _interleaved(inputs[i : i + 2], lanes)) for i in (0, 2)]
        return T.reinterpret("int8x64", _interleaved(neighbours, lanes))

    def finish(acc: Expr, constants: Expr, c: Expr) -> Expr:
        value = cast(acc, "float32", lanes) * constants[span(c, lanes)] + constants[span(channels + c, lanes)]
        return quantized(value, limits or limits_of("int8"), "int8", lanes)

    def start(constants: Expr, c: Expr) -> Expr:
        return T.reinterpret("int32x16", constants[span(channels + c, lanes)]) if small else fill(0, "int32", lanes)

    @T.inline
    def gather(fours, a, line, x, column, c, edge, end):
        for group in T.unroll(groups):
            fours[span((column * groups + group) * lanes * _TAPS, lanes * _TAPS)] = four(
                a, line, x, column, group, c, edge, end
            )

    @T.inline
    def store(acc, constants, y, first, c):
        if small:
            for half in T.unroll(lanes // _FINISHED):
                y[span(first + c + half * _FINISHED, _FINISHED)] = saturated(
                    bounded(
                        acc[span(half * _FINISHED, _FINISHED)],
                        constants[span(c + half * _FINISHED, _FINISHED)],
                        constants[span(2 * channels + c + half * _FINISHED, _FINISHED)],
                        _FINISHED,
                    ),
                    _FINISHED,
                    limits or limits_of("int8"),
                    saturate,
                )
        else:
            y[span(first + c, lanes)] = finish(acc[span(0, lanes)], constants, c)

    @T.inline
    def add(acc, fours, w, c, p, r):
        for kx in T.unroll(kernel_w):
            for group in T.unroll(groups):
                acc[span(0, lanes)] = across(
                    acc[span(0, lanes)],
                    fours[span((tile.column(p, kx) * groups + group) * lanes * _TAPS, lanes * _TAPS)],
                    w[span((((kx * high + r) * groups + group) * channels + c) * _TAPS, lanes * _TAPS)],
                )

    @T.inline
    def pixels_of(a, w, constants, y, line, x, c, edge, end):
        fours_at: T.let = on_stack(tile.columns * groups * lanes * _TAPS, "int8")
        fours = T.decl_buffer((tile.columns * groups * lanes * _TAPS,), "int8", data=fours_at, scope="local")
        acc_at: T.let = on_stack(lanes, "int32")
        acc = T.decl_buffer((lanes,), "int32", data=acc_at, scope="local")
        for i in T.unroll(tile.columns - pixels * tile.new):
            gather(fours, a, line, x, i, c, edge, end)
        for p in T.unroll(pixels):
            for i in T.unroll(tile.new):
                gather(fours, a, line, x, tile.columns - (pixels - p) * tile.new + i, c, edge, end)
            for r in T.unroll(high):
                in_turn()
                acc[span(0, lanes)] = start(constants, c)
                add(acc, fours, w, c, p, r)
                store(acc, constants, y, tile.write(line + r, x, p), c)

    @T.inline
    def lines_of(a, w, c, y, line, v, edge):
        for x in T.unroll(first):
            pixels_of(a, w, c, y, line, x, v, edge, True)
        for x in T.serial(last - first):
            pixels_of(a, w, c, y, line, x + first, v, edge, False)
        for x in T.unroll(tile.spans - last):
            pixels_of(a, w, c, y, line, x + last, v, edge, True)

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((tile.input_elements,), "int8"),
        w: T.Buffer((kernel_w * high * groups * channels * _TAPS,), "int8"),
        c: T.Buffer((constants_of,), "float32"),
        y: T.Buffer((shape.batch * height * width * channels,), "int8"),
    ):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(shape.batch * pairs):
            for v in T.serial(vectors):
                if tile.inside(line_of(task)):
                    lines_of(a, w, c, y, line_of(task), vector_start(v, lanes, channels), False)
                else:
                    lines_of(a, w, c, y, line_of(task), vector_start(v, lanes, channels), True)

    return kernel


def _interleaved(parts: list[Expr], lanes: int) -> Expr:
    """Of two vectors: first elements, second elements, and so on."""
    return T.Shuffle(parts, [part * lanes + lane for lane in range(lanes) for part in range(2)])


class _Tile(LineTile):
    """A tile of one or two lines, whose pixels take fours of rows."""

    @property
    def high(self) -> int:
        """Lines that fours of rows serve: two where the second one's window starts a row later."""
        near = self.shape.stride[0] == 1 and self.shape.dilation[0] == 1
        return 2 if near and self.shape.output[0] > 1 else 1

    @property
    def rows(self) -> int:
        """Rows of the input that a tile reads."""
        return self.shape.kernel[0] + self.high - 1

    @property
    def groups(self) -> int:
        """Fours of rows."""
        return math.ceil(self.rows / _TAPS)

    @property
    def pixels(self) -> int:
        """See `LineTile`: the number that takes the fewest columns for a line."""
        width, new = self.shape.output[1], self.shape.stride[1]
        counts = range(1, min(width, _MOST_PIXELS) + 1)
        return min(counts, key=lambda n: (math.ceil(width / n) * (n * (new + _PIXEL_COLUMNS) + self._window), -n))

    @property
    def columns(self) -> int:
        """See `LineTile`."""
        return (self.pixels - 1) * self.shape.stride[1] + self._window

    @property
    def new(self) -> int:
        """Columns that a pixel reads, and the pixels before it in the tile do not."""
        return self.shape.stride[1]

    @property
    def _window(self) -> int:
        """Columns of a pixel, those between its taps among them."""
        return (self.shape.kernel[1] - 1) * self.shape.dilation[1] + 1

    def inside(self, line: Expr) -> Expr:
        """Whether all rows that a tile reads lie in the buffer; `True` where every tile's do."""
        if self.padding[:2] == (0, 0):
            return True
        return T.And(self.meets_row(line, 0), self.meets_row(line, self.rows - 1))

    def write(self, line: Expr, x: Expr, p: Expr) -> Expr:
        """Where the channels of pixel `p` of a tile begin, in one of its lines."""
        return (line * self.shape.output[1] + self.pixel(x) + p) * self.shape.channels

    def column(self, p: Expr, kx: Expr) -> Expr:
        """The column, of the tile's, that tap `kx` of pixel `p` meets."""
        return p * self.shape.stride[1] + kx * self.shape.dilation[1]
