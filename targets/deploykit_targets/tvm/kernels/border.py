# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""The border of a padded NHWC image, where another kernel writes what it surrounds."""

from __future__ import annotations

from deploykit_targets.tvm.kernels.expressions import Expr, fill
from deploykit_targets.tvm.kernels.script import T


def border(
    shape: tuple[int, int, int, int], padding: tuple[int, int, int, int], dtype: str, *, value: float = 0
) -> Expr:
    """Generate the kernel: (output), flat; elements inside are not touched.

    Args:
        shape: the shape of what is surrounded: batch, height, width, channels.
        padding: top, bottom, left, right.
        value: written everywhere; for quantized data its zero point.
    """
    batch, height, width, channels = shape
    top, bottom, left, right = padding
    tall, line = height + top + bottom, (width + left + right) * channels
    before, after, constant = left * channels, right * channels, fill(value, dtype, 1)

    @T.prim_func(s_tir=True)
    def kernel(y: T.Buffer((batch * tall * line,), dtype)):
        T.func_attr({"tirx.noalias": True})
        for image in T.serial(batch):
            for i in T.serial(top * line):
                y[image * tall * line + i] = constant
            for row in T.serial(height):
                for i in T.serial(before):
                    y[(image * tall + top + row) * line + i] = constant
                for i in T.serial(after):
                    y[(image * tall + top + row + 1) * line - after + i] = constant
            for i in T.serial(bottom * line):
                y[(image * tall + top + height) * line + i] = constant

    return kernel
