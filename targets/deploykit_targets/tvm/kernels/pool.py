# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Maximum and average pooling of NHWC data, quantized, bfloat16 or float32.

Global pooling is a window as large as the input. Padding is part of the window's arithmetic, no copy is made.
Refused: dilated windows. Rounding of quantized averages: exact int32 sums, float32 scale, half to even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16, real, stored
from deploykit_targets.tvm.kernels.expressions import (
    UNSCALED,
    Affine,
    Expr,
    cast,
    fill,
    limits_of,
    on_stack,
    quantized,
    span,
    spread,
    vector_lanes,
    vector_start,
)
from deploykit_targets.tvm.kernels.script import T

_BYTES = 64


@dataclass(frozen=True)
class PoolShape:
    """Sizes of a pooling window over NHWC data.

    Args:
        batch, height, width, channels: the sizes of the input, without padding.
        kernel, stride: (vertical, horizontal).
        padding: top, bottom, left, right; each smaller than the window, so that every window meets data.
    Raises:
        UsageError: a window could lie in the padding alone, or is larger than the padded input.
    """

    batch: int
    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        top, bottom, left, right = self.padding
        if max(top, bottom) >= self.kernel[0] or max(left, right) >= self.kernel[1] or min(self.output) < 1:
            raise UsageError(
                f"pool: window {self.kernel} with padding {self.padding} does not fit {self.height}x{self.width}"
            )

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        top, bottom, left, right = self.padding
        height = (self.height + top + bottom - self.kernel[0]) // self.stride[0] + 1
        return height, (self.width + left + right - self.kernel[1]) // self.stride[1] + 1

    @property
    def elements(self) -> tuple[int, int]:
        """Elements of input and output."""
        pixels = self.height * self.width
        return self.batch * pixels * self.channels, self.batch * math.prod(self.output) * self.channels


def max_pool(shape: PoolShape, dtype: str) -> Expr:
    """Generate the kernel: (input, output), flat, both of `dtype` at the same scale.

    Positions outside are read as the nearest inside, which lies in the same window.
    """
    (kernel_h, kernel_w), (height, width), channels = shape.kernel, shape.output, shape.channels
    eight_bits = dtype not in ("float32", BFLOAT16)
    lanes, kept = vector_lanes(channels, _BYTES if eight_bits else _BYTES // 4), dtype if eight_bits else "float32"
    vectors, lines, (inputs, outputs) = math.ceil(channels / lanes), shape.batch * height, shape.elements

    def at(line: Expr, x: Expr, ky: Expr, kx: Expr, v: Expr) -> Expr:
        row = line % height * shape.stride[0] + ky - shape.padding[0]
        column = x * shape.stride[1] + kx - shape.padding[2]
        if any(shape.padding):
            row, column = T.max(0, T.min(row, shape.height - 1)), T.max(0, T.min(column, shape.width - 1))
        pixel = (line // height * shape.height + row) * shape.width + column
        return span(pixel * channels + vector_start(v, lanes, channels), lanes)

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((inputs,), dtype), y: T.Buffer((outputs,), dtype)):
        T.func_attr({"tirx.noalias": True})
        for line in T.parallel(lines):
            for x in T.serial(width):
                for v in T.serial(vectors):
                    best_at: T.let = on_stack(lanes, kept)
                    best = T.decl_buffer((lanes,), kept, data=best_at, scope="local")
                    best[span(0, lanes)] = real(a[at(line, x, 0, 0, v)], dtype, lanes)
                    for ky in T.serial(kernel_h):
                        for kx in T.serial(kernel_w):
                            best[span(0, lanes)] = T.max(
                                best[span(0, lanes)], real(a[at(line, x, ky, kx, v)], dtype, lanes)
                            )
                    y[span((line * width + x) * channels + vector_start(v, lanes, channels), lanes)] = (
                        best[span(0, lanes)] if eight_bits else stored(best[span(0, lanes)], None, dtype, lanes)
                    )

    return kernel


def average_pool(
    shape: PoolShape,
    dtype: str,
    *,
    of: Affine = UNSCALED,
    to: Affine = UNSCALED,
    count_padding: bool = True,
    output: str | None = None,
) -> Expr:
    """Generate the kernel: (input, output), flat.

    Args:
        shape: sizes.
        dtype: of the input: uint8, int8, bfloat16's or float32.
        of, to: quantization of input and output; for eight bits only.
        count_padding: divide by the whole window, not by the positions that meet data.
        output: of floats, float32 or bfloat16's; that of the input by default.
    """
    (kernel_h, kernel_w), (height, width), channels = shape.kernel, shape.output, shape.channels
    floats, written = dtype in ("float32", BFLOAT16), output or dtype
    lanes, total = vector_lanes(channels, _BYTES // 4), "float32" if floats else "int32"
    vectors, lines, (inputs, outputs) = math.ceil(channels / lanes), shape.batch * height, shape.elements

    def top(line: Expr) -> Expr:
        return line % height * shape.stride[0] - shape.padding[0]

    def left(x: Expr) -> Expr:
        return x * shape.stride[1] - shape.padding[2]

    def met(first: Expr, size: int, limit: int) -> Expr:
        return T.min(first + size, limit) - T.max(first, 0)

    def finish(acc: Expr, line: Expr, x: Expr) -> Expr:
        count = met(top(line), kernel_h, shape.height) * met(left(x), kernel_w, shape.width)
        divisor = kernel_h * kernel_w if count_padding or not any(shape.padding) else count
        one_over = spread(T.float32(1) / T.Cast("float32", divisor), lanes)
        if floats:
            return stored(acc * one_over, None, written, lanes)
        centred = cast(acc - spread(count * of.zero_point, lanes), "float32", lanes)
        scaled = centred * (one_over * fill(of.scale / to.scale, "float32", lanes))
        return quantized(scaled + fill(to.zero_point, "float32", lanes), limits_of(dtype), dtype, lanes)

    def read(value: Expr) -> Expr:
        return real(value, dtype, lanes) if floats else cast(value, total, lanes)

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((inputs,), dtype), y: T.Buffer((outputs,), written)):
        T.func_attr({"tirx.noalias": True})
        for line in T.parallel(lines):
            for x in T.serial(width):
                for v in T.serial(vectors):
                    acc_at: T.let = on_stack(lanes, total)
                    acc = T.decl_buffer((lanes,), total, data=acc_at, scope="local")
                    acc[span(0, lanes)] = fill(0, total, lanes)
                    for ky in T.serial(T.max(0, -top(line)), T.min(kernel_h, shape.height - top(line))):
                        for kx in T.serial(T.max(0, -left(x)), T.min(kernel_w, shape.width - left(x))):
                            acc[span(0, lanes)] = acc[span(0, lanes)] + read(
                                a[
                                    span(
                                        ((line // height * shape.height + top(line) + ky) * shape.width + left(x) + kx)
                                        * channels
                                        + vector_start(v, lanes, channels),
                                        lanes,
                                    )
                                ]
                            )
                    y[span((line * width + x) * channels + vector_start(v, lanes, channels), lanes)] = finish(
                        acc[span(0, lanes)], line, x
                    )

    return kernel
