# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Sums, means, maxima and minima of the rows of a matrix, in float32."""

from __future__ import annotations

import math

from tvm.script import tirx as T

from deploykit_targets.tvm.kernels.expressions import Expr, fill, fold, span, spread, vector_lanes, vector_start

_LANES = 16
_LARGEST = 3.4028234663852886e38


def reduce(rows: int, length: int, kind: str) -> Expr:
    """Generate the kernel: (input, output), flat, of shapes (rows, length) and (rows,).

    Args:
        kind: `sum`, `mean`, `amax` or `amin`.
    """
    lanes = vector_lanes(length, _LANES)
    start = {"amax": -_LARGEST, "amin": _LARGEST}.get(kind, 0.0)
    join = {"amax": T.max, "amin": T.min}.get(kind, _plus)
    factor = T.float32(1 / length if kind == "mean" else 1)

    def new(value: Expr, v: Expr) -> Expr:
        """Without the lanes that the vector before has seen; the last one may overlap it. Extremes do not mind."""
        if length % lanes == 0 or kind in ("amax", "amin"):
            return value
        first = spread(v * lanes - vector_start(v, lanes, length), lanes)
        return T.Select(T.Ramp(0, 1, lanes) >= first, value, fill(0, "float32", lanes))

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((rows * length,), "float32"), y: T.Buffer((rows,), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in T.parallel(rows):
            total = T.alloc_buffer((lanes,), "float32", scope="local")
            total[span(0, lanes)] = fill(start, "float32", lanes)
            for v in T.serial(math.ceil(length / lanes)):
                total[span(0, lanes)] = join(
                    total[span(0, lanes)], new(a[span(row * length + vector_start(v, lanes, length), lanes)], v)
                )
            y[row] = fold(total[span(0, lanes)], lanes, join) * factor

    return kernel


def _plus(a: Expr, b: Expr) -> Expr:
    return a + b
