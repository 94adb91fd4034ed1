"""Averages of integers as LiteRT computes them, for the simulated reference.

Regions have few elements, so that the mean of integers lies half-way between two of them often: one in sixteen of
4 x 4. The mean of the floats that they stand for is a little beside it, and turns either way. The file's MEAN rounds to
even; its AVERAGE_POOL_2D divides integers that have their zero-point in them, and rounds away from zero. On x86 CPUs
without AVX-512 MEAN rounds to even with the zero-point in, too: where that is odd, ties turn to the other side there.
"""

from __future__ import annotations

from typing import Any, cast

from torch.fx import GraphModule, Node

from deploykit_calibration.op_kinds import spec_of
from deploykit_calibration.simulate import FACTORS, Factor, fake_quantize, key_of, requantize, round_away

_LOWEST = -128
_AVERAGES = frozenset({"mean", "avg_pool"})


def averages_of_integers(module: GraphModule) -> None:
    """Rewrite the averages of a simulated graph that read and write integers of one scale, in place."""
    for node in list(module.graph.nodes):
        source, rounded = _ends(node)
        if source is not None and rounded is not None:
            _rewrite(module, node, source, rounded)
    module.graph.lint()
    module.recompile()


def _ends(node: Node) -> tuple[Node | None, Node | None]:
    """The integers that an average reads, and those that it alone becomes; None where these are no such."""
    if spec_of(node).kind not in _AVERAGES or len(node.users) != 1 or not isinstance(node.args[0], Node):
        return None, None
    source, rounded = node.args[0], next(iter(node.users))
    if source.target is not fake_quantize or rounded.target is not fake_quantize or source.args[1] != rounded.args[1]:
        return None, None
    return source, rounded


def _rewrite(module: GraphModule, node: Node, source: Node, rounded: Node) -> None:
    _, scale, low, high = source.args
    with module.graph.inserting_before(node):
        integers = module.graph.call_function(requantize, (source, scale, low, high, 1.0))
    integers.meta[FACTORS] = (Factor(key_of(source)), Factor())
    node.replace_input_with(source, integers)
    factors = (Factor(), Factor(key_of(rounded)))
    _, _, low, high = rounded.args
    average = node
    if not _is_mean(node):
        with module.graph.inserting_after(node):
            average = module.graph.call_function(round_away, (node, _LOWEST - cast(int, low)))
    rounded.target, rounded.args = requantize, (average, 1.0, low, high, scale)
    rounded.meta[FACTORS] = factors


def _is_mean(node: Node) -> bool:
    """Whether the converter writes MEAN, and not AVERAGE_POOL_2D."""
    if spec_of(node).kind == "mean":
        return True
    sizes: Any = node.args[1]
    return "adaptive" in str(node.target) and (sizes if isinstance(sizes, int) else set(sizes)) in (1, {1})
