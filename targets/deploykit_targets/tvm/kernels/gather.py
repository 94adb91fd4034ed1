# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Slices picked by integers: embeddings, and any selection along one axis."""

from __future__ import annotations

import math

from deploykit_targets.tvm.kernels.expressions import Expr, span, vector_lanes, vector_start
from deploykit_targets.tvm.kernels.script import T

_LANES = 16


def gather(outer: int, count: int, inner: int, picked: int, dtype: str, index_dtype: str) -> Expr:
    """Generate the kernel: (source, indices, output), flat.

    Args:
        outer, count, inner: sizes of the source before, along and after the axis.
        picked: number of indices; negative ones count from the end, and what lies outside is read as the nearest
            inside, so that nobody's memory is touched.
        dtype, index_dtype: the types of source and output, and of the indices.
    """
    lanes = vector_lanes(inner, _LANES)

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((outer * count * inner,), dtype),
        chosen: T.Buffer((picked,), index_dtype),
        y: T.Buffer((outer * picked * inner,), dtype),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in T.parallel(outer * picked):
            for v in T.serial(math.ceil(inner / lanes)):
                y[span(row * inner + vector_start(v, lanes, inner), lanes)] = a[
                    span(
                        (row // picked * count + inside(T.Cast("int32", chosen[row % picked]), count)) * inner
                        + vector_start(v, lanes, inner),
                        lanes,
                    )
                ]

    return kernel


def inside(index: Expr, count: int) -> Expr:
    """An index from 0 to count - 1."""
    return T.max(0, T.min(T.Select(index < 0, index + count, index), count - 1))
