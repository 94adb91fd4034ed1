# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""How the sums of a convolution start and end where they are small whatever the inputs (`packing.Bounded`).

They start from an integer bias, and become bytes in few operations. Layers with few inputs per output, as MobileNets
have, take as long to finish their sums as to multiply.
"""

from __future__ import annotations

from typing import Any

from deploykit_targets.tvm.kernels.conv_address import Address
from deploykit_targets.tvm.kernels.conv_plan import ConvPlan
from deploykit_targets.tvm.kernels.expressions import Expr, bounded, limits_of, saturated
from deploykit_targets.tvm.kernels.residual import Residual
from deploykit_targets.tvm.kernels.script import T


def bounded_ends(plan: ConvPlan, limits: tuple[float, float] | None, residual: Residual | None) -> tuple[Any, Any]:
    """What begins and ends a tile, to be inlined.

    Args:
        plan: the plan; its step has `saturate`.
        limits: clip results to these.
        residual: added to the results, by way of its `through`.
    Returns:
        start: (accumulators, constants, task).
        store: (accumulators, constants, residual or None, output, task, x).
    """
    dot, address = plan.dot, Address(plan)
    sums, pair, saturate, steps = dot.accumulators, dot.sums.rows, dot.saturate, plan.rows // dot.sums.rows
    width, results = plan.results
    beside = width // dot.lanes
    together = beside * sums
    finished = width * pair
    assert saturate is not None

    def totals(acc: Expr, r: Expr, v: Expr) -> Expr:
        """Sums of a step's rows, of as many columns as are finished at once."""
        whole = acc[T.Ramp((r * results + v) * together, 1, together)]
        return dot.row(whole, 0) if dot.sums.parts > 1 else whole

    def row_of(out: Expr, row: int) -> Expr:
        """Bytes of a row, of those of a step's rows: put in order now, where a register holds most of them."""
        return out if pair == 1 else T.Shuffle([out], dot.sums.places(row, width))

    def other_of(b: Expr, task: Expr, x: Expr, r: Expr, v: Expr) -> Expr:
        """The residual of a step's rows, in the order of its sums."""
        rows = [b[T.Ramp(address.write(task, x, r * pair + row, v * beside), 1, width)] for row in range(pair)]
        return rows[0] if pair == 1 else T.Shuffle(rows, dot.sums.together(width))

    def finish(value: Expr, b: Expr | None, task: Expr, x: Expr, r: Expr, v: Expr) -> Expr:
        within = limits or limits_of(dot.activation)
        if b is None or residual is None:
            return saturated(value, finished, within, saturate)
        return residual.bounded_sum(value, other_of(b, task, x, r, v), finished, within, saturate)

    @T.inline
    def start(acc, c, task):
        for r in T.unroll(steps):
            for v in T.unroll(results):
                acc[T.Ramp((r * results + v) * together, 1, together)] = T.reinterpret(
                    f"int32x{together}", c[T.Ramp(address.start(task, r, v), 1, together)]
                )

    @T.inline
    def store(acc, c, b, y, task, x):
        for r in T.unroll(steps):
            for v in T.unroll(results):
                out: T.let = finish(
                    bounded(
                        totals(acc, r, v),
                        c[T.Ramp(address.scale(task, v), 1, finished)],
                        c[T.Ramp(address.shift(task, r, v), 1, finished)],
                        finished,
                    ),
                    b,
                    task,
                    x,
                    r,
                    v,
                )
                y[T.Ramp(address.write(task, x, r * pair, v * beside), 1, width)] = row_of(out, 0)
                if pair == 2:
                    y[T.Ramp(address.write(task, x, r * pair + 1, v * beside), 1, width)] = row_of(out, 1)

    return start, store
