"""How many elements each layer moves, for the roofline of `deploykit.plugin.estimate`."""

from __future__ import annotations

from deploykit_targets.tvm.program import Program, Region


def traffic_of(program: Program) -> dict[str, list[int]]:
    """Node to [elements read, elements written] by all its steps, weights and other constants excluded."""
    found: dict[str, list[int]] = {}
    for step in program.steps:
        moved = found.setdefault(step.node, [0, 0])
        moved[0] += sum(o.elements for o in step.operands[:-1] if o.region is Region.ARENA)
        moved[1] += step.operands[-1].elements
    return found
