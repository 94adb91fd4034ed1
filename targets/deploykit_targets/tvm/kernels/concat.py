"""Concatenation of any number of tensors along one axis, with a change of scale where quantized inputs differ.

Built with TVM's builder instead of TVMScript, whose functions have a fixed number of arguments.
"""

from __future__ import annotations

import math

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.elementwise import requantized
from deploykit_targets.tvm.kernels.expressions import Affine, Expr, span, vector_lanes, vector_start


def concat(
    outer: int,
    widths: list[int],
    dtype: str,
    *,
    of: list[Affine] | None = None,
    to: Affine | None = None,
) -> Expr:
    """Generate the kernel: (inputs..., output), flat.

    Args:
        outer: product of the sizes before the axis (for channels of NHWC: all pixels).
        widths: per input, product of its sizes from the axis on.
        dtype: the dtype of all inputs and of the output.
        of, to: quantization of each input and of the output; without them elements are copied.
    Raises:
        UsageError: there is no input, or only one of `of` and `to` is given, or `of` has another length.
    """
    if not widths or (of is None) != (to is None) or (of is not None and len(of) != len(widths)):
        raise UsageError(f"concat: {len(widths)} inputs with quantization {of} to {to}", hint="one Affine per input")
    total = sum(widths)
    with IRBuilder() as frame:
        with builder.prim_func(s_tir=True):
            builder.func_name("kernel")
            sources = [builder.arg(f"a{i}", builder.Buffer((outer * w,), dtype)) for i, w in enumerate(widths)]
            result = builder.arg("y", builder.Buffer((outer * total,), dtype))
            builder.func_attr({"tirx.noalias": True})
            with builder.parallel(0, outer) as row:
                for index, (source, width) in enumerate(zip(sources, widths, strict=True)):
                    lanes = vector_lanes(width, 64 if of is None and dtype != "float32" else 16)
                    with builder.serial(0, math.ceil(width / lanes)) as vector:
                        start = vector_start(vector, lanes, width)
                        value = source[span(row * width + start, lanes)]
                        if of is not None and to is not None:
                            value = requantized(value, of[index], to, dtype, lanes)
                        first = row * total + sum(widths[:index]) + start
                        builder.buffer_store(result, value, [span(first, lanes)])
        return frame.get()
