"""What stays in float beside the integer layers of a placement: activations, gates, norms and what they move.

An integer layer whose neighbour is one of these dequantises its result for it and reads a quantised one again. Left
out are operators that only move data, activations that the target's kernels apply before they round, arithmetic on
masks and positions, and layers with products, which a placement reports by themselves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.fx import Node

from deploykit.contract.achieved import FloatActivation
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.op_kinds import shape_of
from deploykit_calibration.plan import PlacementPlan, Planner
from deploykit_calibration.products import layer_kind, mac_count, operator_name

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_MOVES = frozenset({"reshape", "split", "pad"})
_MOVES_BY_NAME = frozenset(
    "_to_copy to view_as_real view_as_complex index gather repeat_interleave unfold im2col col2im".split()
)
_BYTES = 4


def float_activations(
    captured: CapturedModel, view: GraphView, planner: Planner, plan: PlacementPlan
) -> tuple[FloatActivation, ...]:
    """The float operators that read what an integer layer computed, or compute what one reads, largest first."""
    fused = {planner.tail(op) for op in plan.reads}
    floats = [op for op in view.ops() if op not in fused and op not in plan.reads and _computes(view, op)]
    near = _reached(plan, forward=True) | _reached(plan, forward=False)
    found = [_described(captured, view, op) for op in floats if op in near]
    return tuple(sorted(found, key=lambda each: -each.elements))


def _computes(view: GraphView, op: Node) -> bool:
    """Whether an operator calculates with data, and has no products."""
    if view.kinds[op] in _MOVES or operator_name(op) in _MOVES_BY_NAME or mac_count(op):
        return False
    return any(result in view.activations for result in view.results(op)) and view.kinds[op] != "embedding"


def _reached(plan: PlacementPlan, *, forward: bool) -> set[Node]:
    """What lies behind (or before) the integer layers of a plan."""
    pending, found = list(plan.reads), set[Node]()
    while pending:
        node = pending.pop()
        for neighbour in node.users if forward else node.all_input_nodes:
            if neighbour not in found:
                found.add(neighbour)
                pending.append(neighbour)
    return found


def _described(captured: CapturedModel, view: GraphView, op: Node) -> FloatActivation:
    operands = [each for each in view.operands(op) if each in view.activations]
    elements = sum(math.prod(shape_of(each)) for each in (*operands, *view.results(op)))
    origin = captured.origins.get(op.name)
    return FloatActivation(op.name, origin.module_path if origin else "", layer_kind(op), elements, _BYTES * elements)
