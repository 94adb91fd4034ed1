# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""How the sums of a convolution start and end where they are small whatever the inputs (`packing.Bounded`).

They start from an integer bias, and become bytes in few operations. Layers with few inputs per output, as MobileNets
have, take as long to finish their sums as to multiply.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from deploykit_targets.tvm.kernels.conv_plan import Address, ConvPlan
from deploykit_targets.tvm.kernels.expressions import Expr, bounded, limits_of


def bounded_ends(plan: ConvPlan, limits: tuple[float, float] | None) -> tuple[Any, Any]:
    """What begins and ends a tile, to be inlined.

    Args:
        plan: the plan; its step has `saturate`.
        limits: clip results to these.
    Returns:
        start: (accumulators, constants, task), for plans whose accumulators start from the bias (`ConvPlan.starts`).
        store: (accumulators, constants, output, task, x).
    """
    dot, rows, tile, address = plan.dot, plan.rows, plan.tile, Address(plan)
    lanes, sums, pair, saturate = dot.lanes, dot.sums, dot.pair, dot.saturate
    width, results = plan.results
    beside = width // lanes
    assert saturate is not None

    def biases(c: Expr, task: Expr, r: Expr, v: Expr) -> Expr:
        return T.reinterpret(f"int32x{width}", c[T.Ramp(address.start(task, r, v), 1, width)])

    def totals(acc: Expr, c: Expr, task: Expr, r: Expr, row: int, v: Expr) -> Expr:
        """Sums of a row, bias included, of as many columns as are finished at once."""
        if plan.starts:
            return acc[T.Ramp((r * results + v) * width, 1, width)]
        parts = [acc[T.Ramp((r * tile + v * beside + i) * sums, 1, sums)] for i in range(beside)]
        own = T.Shuffle([dot.row(part, row) for part in parts], list(range(width)))
        return own + biases(c, task, r * pair + row, v)

    @T.inline
    def start(acc, c, task):
        for r in T.unroll(rows):
            for v in T.unroll(results):
                acc[T.Ramp((r * results + v) * width, 1, width)] = biases(c, task, r, v)

    @T.inline
    def store_row(acc, c, y, task, x, r, row, v):
        y[T.Ramp(address.write(task, x, r * pair + row, v * beside), 1, width)] = bounded(
            totals(acc, c, task, r, row, v),
            c[T.Ramp(address.constant(task, v * beside), 1, width)],
            c[T.Ramp(address.zero_point(r * pair + row, v), 1, width)],
            width,
            limits or limits_of(dot.activation),
            saturate,
        )

    @T.inline
    def store(acc, c, y, task, x):
        for r in T.unroll(rows // pair):
            for v in T.unroll(results):
                store_row(acc, c, y, task, x, r, 0, v)
                if pair == 2:
                    store_row(acc, c, y, task, x, r, 1, v)

    return start, store
