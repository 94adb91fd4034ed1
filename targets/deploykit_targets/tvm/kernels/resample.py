# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Weighted sums of a few inputs along one axis: resizing, in float32."""

from __future__ import annotations

import math

from deploykit_targets.tvm.kernels.expressions import (
    Expr,
    fill,
    fma,
    on_stack,
    span,
    spread,
    vector_lanes,
    vector_start,
)
from deploykit_targets.tvm.kernels.script import T

_LANES = 16


def resample(outer: int, count: int, inner: int, results: int, taps: int) -> Expr:
    """Generate the kernel: (source, indices, weights, output), flat.

    Args:
        outer, count, inner: sizes of the source before, along and after the axis.
        results: size of the axis in the output; `indices` (int32) and `weights` (float32) have shape (results, taps).
    """
    lanes = vector_lanes(inner, _LANES)

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((outer * count * inner,), "float32"),
        chosen: T.Buffer((results * taps,), "int32"),
        w: T.Buffer((results * taps,), "float32"),
        y: T.Buffer((outer * results * inner,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in T.parallel(outer * results):
            for v in T.serial(math.ceil(inner / lanes)):
                total_at: T.let = on_stack(lanes, "float32")
                total = T.decl_buffer((lanes,), "float32", data=total_at, scope="local")
                total[span(0, lanes)] = fill(0, "float32", lanes)
                for t in T.unroll(taps):
                    total[span(0, lanes)] = fma(
                        a[
                            span(
                                (row // results * count + chosen[row % results * taps + t]) * inner
                                + vector_start(v, lanes, inner),
                                lanes,
                            )
                        ],
                        spread(w[row % results * taps + t], lanes),
                        total[span(0, lanes)],
                        lanes,
                    )
                y[span(row * inner + vector_start(v, lanes, inner), lanes)] = total[span(0, lanes)]

    return kernel
