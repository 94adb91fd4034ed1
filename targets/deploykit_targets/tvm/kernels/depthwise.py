# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Depthwise convolution: one filter per channel, int8 or float32; vectors run over channels.

The input is already padded (`pad`). Refused: more than one output per channel, which `conv` computes with groups.
Rounding of int8 is that of `conv`.
"""

from __future__ import annotations

import math

import numpy as np
from tvm.script import tirx as T

from deploykit.errors import UsageError
from deploykit_targets.tvm.kernels.conv import ConvShape
from deploykit_targets.tvm.kernels.expressions import (
    Expr,
    cast,
    clip,
    fill,
    fma,
    limits_of,
    quantized,
    span,
    vector_lanes,
    vector_start,
)
from deploykit_targets.tvm.kernels.isa import Dot
from deploykit_targets.tvm.kernels.packing import Array

_LANES = 16  # channels per vector; narrower instruction sets take it in pieces
_PIXELS = 8  # that share the weights in registers


def pack_depthwise(weight: Array, dot: Dot) -> Array:
    """Pack weights for `depthwise`.

    Args:
        weight: shape (channels, 1, kernel height, kernel width), as PyTorch has it; int8 or float32.
    Returns:
        Flat, taps by channels; int16 for int8 weights, as products are 16-bit multiplications.
    """
    dtype = np.int16 if dot.quantized else np.float32
    return np.ascontiguousarray(weight.reshape(weight.shape[0], -1).T.astype(dtype)).ravel()


def depthwise(shape: ConvShape, dot: Dot, *, limits: tuple[float, float] | None = None) -> Expr:
    """Generate the kernel: (input, packed weights, constants, output), flat.

    The constants are float32: for int8 all scales, then all biases (`packing.fold_requantization`); else the biases.

    Args:
        shape: with as many groups and columns as channels.
        dot: precision and dtypes.
        limits: clip the result to these (a fused activation); for int8 in quantized units.
    Raises:
        UsageError: the convolution is not depthwise.
    """
    if not shape.groups == shape.channels == shape.columns:
        raise UsageError(
            f"depthwise: {shape.channels} -> {shape.columns} channels in {shape.groups} groups is not depthwise",
            hint="use the kernel of conv, which takes groups",
        )
    channels, (kernel_h, kernel_w), (height, width) = shape.channels, shape.kernel, shape.output
    lanes, pixels = vector_lanes(channels, _LANES), min(width, _PIXELS)
    vectors, spans, lines = math.ceil(channels / lanes), math.ceil(width / pixels), shape.batch * height
    parts = 2 if dot.quantized else 1

    def read(line: Expr, x: Expr, ky: Expr, kx: Expr) -> Expr:
        row = line // height * shape.height + line % height * shape.stride[0] + ky * shape.dilation[0]
        return (row * shape.width + x * shape.stride[1] + kx * shape.dilation[1]) * channels

    def step(acc: Expr, a: Expr, w: Expr) -> Expr:
        return acc + cast(a, "int32", lanes) * cast(w, "int32", lanes) if dot.quantized else fma(a, w, acc, lanes)

    def finish(acc: Expr, c: Expr, first: Expr) -> Expr:
        if not dot.quantized:
            value = acc + c[span(first, lanes)]
            return value if limits is None else clip(value, limits, "float32", lanes)
        value = cast(acc, "float32", lanes) * c[span(first, lanes)] + c[span(channels + first, lanes)]
        return quantized(value, limits or limits_of(dot.activation), dot.activation, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((shape.batch * shape.height * shape.width * channels,), dot.activation),
        w: T.Buffer((kernel_h * kernel_w * channels,), "int16" if dot.quantized else "float32"),
        c: T.Buffer((parts * channels,), "float32"),
        y: T.Buffer((lines * width * channels,), dot.activation),
    ):
        T.func_attr({"tirx.noalias": True})
        for line in T.parallel(lines):
            for v in T.serial(vectors):
                for x in T.serial(spans):
                    acc = T.alloc_buffer((pixels * lanes,), dot.accumulator, scope="local")
                    for r in T.unroll(pixels):
                        acc[span(r * lanes, lanes)] = fill(0, dot.accumulator, lanes)
                    for ky in T.unroll(kernel_h):
                        for kx in T.unroll(kernel_w):
                            for r in T.unroll(pixels):
                                acc[span(r * lanes, lanes)] = step(
                                    acc[span(r * lanes, lanes)],
                                    a[
                                        span(
                                            read(line, vector_start(x, pixels, width) + r, ky, kx)
                                            + vector_start(v, lanes, channels),
                                            lanes,
                                        )
                                    ],
                                    w[span((ky * kernel_w + kx) * channels + vector_start(v, lanes, channels), lanes)],
                                )
                    for r in T.unroll(pixels):
                        y[
                            span(
                                (line * width + vector_start(x, pixels, width) + r) * channels
                                + vector_start(v, lanes, channels),
                                lanes,
                            )
                        ] = finish(acc[span(r * lanes, lanes)], c, vector_start(v, lanes, channels))

    return kernel
