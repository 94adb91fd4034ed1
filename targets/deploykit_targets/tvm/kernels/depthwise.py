# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Depthwise convolution: one filter per channel, int8, bfloat16 or float32; vectors run over channels.

The input is padded by the kernel itself, or before (`pad`). Refused: more than one output per channel, which `conv`
computes with groups.
Rounding of int8 is that of `conv`.
"""

from __future__ import annotations

import math

import numpy as np

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.bfloat16 import real, stored
from deploykit_targets.tvm.kernels.conv_plan import ConvShape
from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.kernels.expressions import (
    Expr,
    cast,
    fill,
    fma,
    limits_of,
    on_stack,
    quantized,
    span,
    vector_lanes,
    vector_start,
)
from deploykit_targets.tvm.kernels.line_tile import LineTile
from deploykit_targets.tvm.kernels.packing import Array
from deploykit_targets.tvm.kernels.script import T

_LANES = 16  # channels per vector; narrower instruction sets take it in pieces
_PIXELS = 8  # that share the weights in registers


def pack_depthwise(weight: Array, dot: Dot) -> Array:
    """Pack weights for `depthwise`.

    Args:
        weight: shape (channels, 1, kernel height, kernel width), as PyTorch has it; int8, float32, or bits of
            bfloat16.
    Returns:
        Flat, taps by channels; int16 for int8 weights, as products are 16-bit multiplications.
    """
    dtype = np.int16 if dot.quantized else dot.weight
    return np.ascontiguousarray(weight.reshape(weight.shape[0], -1).T.astype(dtype)).ravel()


def depthwise(
    shape: ConvShape,
    dot: Dot,
    *,
    limits: tuple[float, float] | None = None,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    zero: int = 0,
    output: str | None = None,
) -> Expr:
    """Generate the kernel: (input, packed weights, constants, output), flat.

    The constants are float32: for int8 all scales, then all biases (`packing.fold_requantization`); else the biases.

    Args:
        shape: the shape of the padded input, with as many groups and columns as channels.
        dot: precision and dtypes.
        limits: clip the result to these (a fused activation); for int8 in quantized units.
        padding: top, bottom, left, right: how much of `shape` the input buffer lacks. Windows are cut there, no copy
            is made. Without it the buffer is padded (`pad`).
        zero: the value outside, for int8 the input's zero point.
        output: of floats, float32 or bfloat16's; the activations' dtype by default.
    Raises:
        UsageError: the convolution is not depthwise.
    """
    if not shape.groups == shape.channels == shape.columns:
        raise UsageError(
            f"depthwise: {shape.channels} -> {shape.columns} channels in {shape.groups} groups is not depthwise",
            hint="use the kernel of conv, which takes groups",
        )
    channels, (kernel_h, kernel_w), (height, width) = shape.channels, shape.kernel, shape.output
    tile = _Tile(shape, padding)
    lanes, pixels = vector_lanes(channels, _LANES), tile.pixels
    vectors, lines, (first, last) = math.ceil(channels / lanes), shape.batch * height, tile.inner
    parts, dtype = 2 if dot.quantized else 1, output or dot.activation
    outside = fill(zero, dot.activation, lanes)

    def step(acc: Expr, a: Expr, w: Expr) -> Expr:
        if not dot.quantized:
            return fma(real(a, dot.activation, lanes), real(w, dot.weight, lanes), acc, lanes)
        return dot.depthwise.lane_by_lane(acc, cast(a, "int32", lanes), cast(w, "int32", lanes), lanes)

    def take(a: Expr, line: Expr, x: Expr, r: Expr, ky: Expr, kx: Expr, c: Expr, cut: bool) -> Expr:
        inputs = a[span(tile.read(line, x, ky, tile.tap(r, kx)) + c, lanes)]
        return T.if_then_else(tile.meets_column(x, tile.tap(r, kx)), inputs, outside) if cut else inputs

    def finish(acc: Expr, c: Expr, start: Expr) -> Expr:
        if not dot.quantized:
            return stored(acc + c[span(start, lanes)], limits, dtype, lanes)
        value = cast(acc, "float32", lanes) * c[span(start, lanes)] + c[span(channels + start, lanes)]
        return quantized(value, limits or limits_of(dot.activation), dot.activation, lanes)

    @T.inline
    def add_row(acc, a, w, line, x, ky, c, cut):
        for kx in T.unroll(kernel_w):
            for r in T.unroll(pixels):
                acc[span(r * lanes, lanes)] = step(
                    acc[span(r * lanes, lanes)],
                    take(a, line, x, r, ky, kx, c, cut),
                    w[span((ky * kernel_w + kx) * channels + c, lanes)],
                )

    @T.inline
    def add_outside(acc, w, ky, c):
        """A row of the window that meets no data; of float32 it adds nothing."""
        if zero != 0:
            for kx in T.unroll(kernel_w):
                for r in T.unroll(pixels):
                    acc[span(r * lanes, lanes)] = step(
                        acc[span(r * lanes, lanes)], outside, w[span((ky * kernel_w + kx) * channels + c, lanes)]
                    )

    @T.inline
    def pixels_of(a, w, constants, y, line, x, c, cut):
        acc_at: T.let = on_stack(pixels * lanes, dot.accumulator)
        acc = T.decl_buffer((pixels * lanes,), dot.accumulator, data=acc_at, scope="local")
        for r in T.unroll(pixels):
            acc[span(r * lanes, lanes)] = fill(0, dot.accumulator, lanes)
        for ky in T.unroll(kernel_h):
            if tile.meets_row(line, ky):
                add_row(acc, a, w, line, x, ky, c, cut)
            else:
                add_outside(acc, w, ky, c)
        for r in T.unroll(pixels):
            y[span((line * width + tile.pixel(x) + r) * channels + c, lanes)] = finish(
                acc[span(r * lanes, lanes)], constants, c
            )

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((tile.input_elements,), dot.activation),
        w: T.Buffer((kernel_h * kernel_w * channels,), "int16" if dot.quantized else dot.weight),
        c: T.Buffer((parts * channels,), "float32"),
        y: T.Buffer((lines * width * channels,), dtype),
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


class _Tile(LineTile):
    """A tile whose pixels share the weights in registers."""

    @property
    def pixels(self) -> int:
        """See `LineTile`."""
        return min(self.shape.output[1], _PIXELS)

    @property
    def columns(self) -> int:
        """See `LineTile`."""
        return int(self.tap(self.pixels - 1, self.shape.kernel[1] - 1)) + 1

    def tap(self, r: Expr, kx: Expr) -> Expr:
        """The column that pixel `r` reads at the window's column `kx`."""
        return r * self.shape.stride[1] + kx * self.shape.dilation[1]
