# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Spatial padding of NHWC data by copying lines: tests inside a convolution's loops would cost it two to four times.

Refused: padding of channels, which the convolution needs none of.
"""

from __future__ import annotations

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.expressions import Expr, fill
from deploykit_targets.tvm.kernels.script import T


def pad(
    shape: tuple[int, int, int, int],
    padding: tuple[int, int, int, int],
    dtype: str,
    *,
    value: float = 0,
    slack: int = 0,
) -> Expr:
    """Generate the kernel: (input, output), flat.

    Args:
        shape: the shape of the input: batch, height, width, channels.
        padding: top, bottom, left, right.
        dtype: uint8, int8 or float32.
        value: written around the data; for quantized data its zero point.
        slack: elements that the output has beyond its tensor, set to `value` (`ConvPlan.input_elements`).
    Raises:
        UsageError: padding is negative.
    """
    if min(padding) < 0:
        raise UsageError(f"pad: cannot pad by {padding}", hint="cut with a slice instead")
    batch, height, width, channels = shape
    top, bottom, left, right = padding
    tall, line, copied, before = (
        height + top + bottom,
        (width + left + right) * channels,
        width * channels,
        left * channels,
    )
    after = line - copied - before
    constant = fill(value, dtype, 1)

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((batch * height * copied,), dtype),
        y: T.Buffer((batch * tall * line + slack,), dtype),
    ):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(batch * tall):
            if T.And(task % tall >= top, task % tall < top + height):
                for i in T.serial(before):
                    y[task * line + i] = constant
                for i in T.serial(copied):
                    y[task * line + before + i] = a[(task // tall * height + task % tall - top) * copied + i]
                for i in T.serial(after):
                    y[task * line + before + copied + i] = constant
            else:
                for i in T.serial(line):
                    y[task * line + i] = constant
        for i in T.serial(slack):
            y[batch * tall * line + i] = constant

    return kernel
