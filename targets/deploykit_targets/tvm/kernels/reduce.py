# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Sums, means, maxima and minima of the rows of a matrix, in float32 or integers."""

from __future__ import annotations

import math

from deploykit_targets.tvm.kernels.expressions import (
    Expr,
    fill,
    fold,
    on_stack,
    span,
    spread,
    vector_lanes,
    vector_start,
)
from deploykit_targets.tvm.kernels.script import T

_LANES = 16
_LARGEST = 3.4028234663852886e38


def reduce(rows: int, length: int, kind: str, dtype: str = "float32") -> Expr:
    """Generate the kernel: (input, output), flat, of shapes (rows, length) and (rows,).

    Args:
        kind: `sum`, `mean`, `amax` or `amin`; a mean is of float32.
        dtype: the dtype of input and output.
    """
    lanes = vector_lanes(length, _LANES)
    largest = _LARGEST if dtype == "float32" else 2 ** (31 if dtype == "int32" else 63) - 1
    start = {"amax": -largest, "amin": largest}.get(kind, 0)
    join = {"amax": T.max, "amin": T.min}.get(kind, _plus)

    def finish(total: Expr) -> Expr:
        return total * T.float32(1 / length) if kind == "mean" else total

    def new(value: Expr, v: Expr) -> Expr:
        """Without the lanes that the vector before has seen; the last one may overlap it. Extremes do not mind."""
        if length % lanes == 0 or kind in ("amax", "amin"):
            return value
        first = spread(v * lanes - vector_start(v, lanes, length), lanes)
        return T.Select(T.Ramp(0, 1, lanes) >= first, value, fill(0, dtype, lanes))

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((rows * length,), dtype), y: T.Buffer((rows,), dtype)):
        T.func_attr({"tirx.noalias": True})
        for row in T.parallel(rows):
            total_at: T.let = on_stack(lanes, dtype)
            total = T.decl_buffer((lanes,), dtype, data=total_at, scope="local")
            total[span(0, lanes)] = fill(start, dtype, lanes)
            for v in T.serial(math.ceil(length / lanes)):
                total[span(0, lanes)] = join(
                    total[span(0, lanes)], new(a[span(row * length + vector_start(v, lanes, length), lanes)], v)
                )
            y[row] = finish(fold(total[span(0, lanes)], lanes, join))

    return kernel


def _plus(a: Expr, b: Expr) -> Expr:
    return a + b
