# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Softmax and normalisation along the last axis: each row needs a sum over itself before one of its results is known.

Inputs are float32, results float32, bfloat16 or quantized. Nothing is kept between the passes over a row: what is
cheap is computed again, so that no kernel asks for memory. Refused: other axes, which a copy brings to the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16, stored
from deploykit_targets.tvm.kernels.expressions import (
    Affine,
    Expr,
    fill,
    fold,
    limits_of,
    on_stack,
    quantized,
    span,
    spread,
    vector_lanes,
    vector_start,
)
from deploykit_targets.tvm.kernels.script import T
from deploykit_targets.tvm.kernels.vector_math import exp

_LANES = 16
_SHARE = 4096  # elements of a task, where there are enough rows


def softmax(rows: int, columns: int, *, to: Affine | None = None, dtype: str = "float32") -> Expr:
    """Generate the kernel: (input, output), flat, shape (rows, columns); each row of results sums to one.

    Args:
        to: quantization of the output, for an eight-bit `dtype`.
    """
    lanes, vectors, share, tasks = _split(rows, columns)
    store = _store(to, dtype, lanes)

    def at(row: Expr, v: Expr) -> Expr:
        return span(row * columns + vector_start(v, lanes, columns), lanes)

    def power(x: Expr, largest: Expr) -> Expr:
        return exp(x - spread(largest, lanes), lanes)

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((rows * columns,), "float32"), y: T.Buffer((rows * columns,), dtype)):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(tasks):
            for r in T.serial(T.min(share, rows - task * share)):
                best_at: T.let = on_stack(lanes, "float32")
                best = T.decl_buffer((lanes,), "float32", data=best_at, scope="local")
                total_at: T.let = on_stack(lanes, "float32")
                total = T.decl_buffer((lanes,), "float32", data=total_at, scope="local")
                scalar_at: T.let = on_stack(2, "float32")
                scalar = T.decl_buffer((2,), "float32", data=scalar_at, scope="local")
                best[span(0, lanes)] = a[at(task * share + r, 0)]
                for v in T.serial(vectors):
                    best[span(0, lanes)] = T.max(best[span(0, lanes)], a[at(task * share + r, v)])
                scalar[0] = fold(best[span(0, lanes)], lanes, T.max)
                total[span(0, lanes)] = fill(0, "float32", lanes)
                for v in T.serial(vectors):
                    total[span(0, lanes)] = total[span(0, lanes)] + _new(
                        power(a[at(task * share + r, v)], scalar[0]), v, lanes, columns
                    )
                scalar[1] = T.float32(1) / fold(total[span(0, lanes)], lanes, _plus)
                for v in T.serial(vectors):
                    y[at(task * share + r, v)] = store(
                        power(a[at(task * share + r, v)], scalar[0]) * spread(scalar[1], lanes)
                    )

    return kernel


def layer_norm(
    rows: int,
    columns: int,
    epsilon: float,
    *,
    centred: bool = True,
    to: Affine | None = None,
    dtype: str = "float32",
) -> Expr:
    """Generate the kernel: (input, weight, bias, output), flat; input and output have shape (rows, columns).

    Args:
        epsilon: added to the variance.
        centred: subtract the mean; without it the kernel is RMS normalisation.
        to: quantization of the output, for an eight-bit `dtype`.
    """
    lanes, vectors, share, tasks = _split(rows, columns)
    store = _store(to, dtype, lanes)

    def at(row: Expr, v: Expr) -> Expr:
        return span(row * columns + vector_start(v, lanes, columns), lanes)

    def square(x: Expr, mean: Expr) -> Expr:
        return (x - spread(mean, lanes)) * (x - spread(mean, lanes))

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((rows * columns,), "float32"),
        w: T.Buffer((columns,), "float32"),
        b: T.Buffer((columns,), "float32"),
        y: T.Buffer((rows * columns,), dtype),
    ):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(tasks):
            for r in T.serial(T.min(share, rows - task * share)):
                total_at: T.let = on_stack(lanes, "float32")
                total = T.decl_buffer((lanes,), "float32", data=total_at, scope="local")
                scalar_at: T.let = on_stack(2, "float32")
                scalar = T.decl_buffer((2,), "float32", data=scalar_at, scope="local")
                scalar[0] = T.float32(0)
                if centred:
                    total[span(0, lanes)] = fill(0, "float32", lanes)
                    for v in T.serial(vectors):
                        total[span(0, lanes)] = total[span(0, lanes)] + _new(
                            a[at(task * share + r, v)], v, lanes, columns
                        )
                    scalar[0] = fold(total[span(0, lanes)], lanes, _plus) * T.float32(1 / columns)
                total[span(0, lanes)] = fill(0, "float32", lanes)
                for v in T.serial(vectors):
                    total[span(0, lanes)] = total[span(0, lanes)] + _new(
                        square(a[at(task * share + r, v)], scalar[0]), v, lanes, columns
                    )
                scalar[1] = T.float32(1) / T.sqrt(
                    fold(total[span(0, lanes)], lanes, _plus) * T.float32(1 / columns) + T.float32(epsilon)
                )
                for v in T.serial(vectors):
                    y[at(task * share + r, v)] = store(
                        (a[at(task * share + r, v)] - spread(scalar[0], lanes)) * spread(scalar[1], lanes) * w[at(0, v)]
                        + b[at(0, v)]
                    )

    return kernel


def _split(rows: int, columns: int) -> tuple[int, int, int, int]:
    """(lanes, vectors of a row, rows of a task, tasks)."""
    lanes, share = vector_lanes(columns, _LANES), max(1, min(rows, _SHARE // columns))
    return lanes, math.ceil(columns / lanes), share, math.ceil(rows / share)


def _plus(a: Expr, b: Expr) -> Expr:
    return a + b


def _new(value: Expr, v: Expr, lanes: int, columns: int) -> Expr:
    """`value` without the lanes that the vector before has summed already: the last vector of a row may overlap it."""
    if columns % lanes == 0:
        return value
    first = spread(v * lanes - vector_start(v, lanes, columns), lanes)
    return T.Select(T.Ramp(0, 1, lanes) >= first, value, fill(0, "float32", lanes))


def _store(to: Affine | None, dtype: str, lanes: int) -> Callable[[Expr], Expr]:
    """From float32 results to what is stored."""
    if to is None or dtype == BFLOAT16:
        return lambda value: stored(value, None, dtype, lanes)
    ratio, zero = fill(1 / to.scale, "float32", lanes), fill(to.zero_point, "float32", lanes)
    return lambda value: quantized(value * ratio + zero, limits_of(dtype), dtype, lanes)
