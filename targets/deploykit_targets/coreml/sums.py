"""Sums of integers as coremltools writes them, for the simulated reference.

Its pass `distributive_quantized_binary_op_scale_normalization` divides the scales of `dequantize`, `add` or `sub` and
`quantize` by the scale of the second term, which is then added as plain integers; what is left of the other two scales
is rounded to float16. Half a step of the sum turns the other way here and there.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from torch.fx import GraphModule, Node

from deploykit_calibration.products import operator_name
from deploykit_calibration.simulate import FACTORS, Factor, fake_quantize, key_of, requantize, round_half

_SUMS = frozenset(("add", "sub"))
_LARGEST, _SMALLEST = float(np.finfo(np.float16).max), float(np.finfo(np.float16).smallest_subnormal)


def sum_in_units_of_a_term(module: GraphModule) -> None:
    """Rewrite the sums of a simulated graph with float16 between its integers, in place."""
    for node in list(module.graph.nodes):
        terms = _terms(node)
        quantized = _quantized(node) if terms is not None else None
        if terms is not None and quantized is not None:
            _rewrite(module, node, terms, quantized)
    module.graph.lint()
    module.recompile()


def _terms(node: Node) -> tuple[Node, Node] | None:
    """Both terms of a sum where they are dequantized integers."""
    if node.op != "call_function" or operator_name(node) not in _SUMS or node.kwargs or len(node.args) != 2:
        return None
    first, second = (_behind_rounding(arg) for arg in node.args)
    return (first, second) if first is not None and second is not None else None


def _behind_rounding(term: object) -> Node | None:
    """The rounded integers that a term is, whose values are float16."""
    if not isinstance(term, Node) or term.target is not round_half:
        return None
    source = term.args[0]
    return source if isinstance(source, Node) and source.target is fake_quantize else None


def _quantized(node: Node) -> Node | None:
    """Where a sum is rounded to integers, and goes nowhere else; a ReLU may lie between."""
    user = _only_user(node)
    for _ in range(4):  # rounded, the ReLU, rounded, and the integers
        if user is None or user.target is fake_quantize:
            return user
        if user.target is not round_half and operator_name(user) != "relu":
            return None
        user = _only_user(user)
    return None


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _rewrite(module: GraphModule, node: Node, terms: tuple[Node, Node], quantized: Node) -> None:
    scales = [np.float32(cast(float, each.args[1])) for each in (*terms, quantized)]
    factors = [scales[0] / scales[1], scales[2] / scales[1]]
    if any(not _SMALLEST <= factor <= _LARGEST for factor in factors):
        return
    first, wide = (float(np.float16(factor)) for factor in factors)
    keys = [key_of(each) for each in (*terms, quantized)]
    units = [Factor(keys[0], keys[1], is_half=True), Factor()]
    graph = module.graph
    found = []
    with graph.inserting_before(node):
        for term, key, unit, factor in zip(terms, keys[:2], (first, 1.0), units, strict=True):
            integers = graph.call_function(requantize, (term, *term.args[1:], unit))
            integers.meta[FACTORS] = (Factor(key), factor)
            found.append(graph.call_function(round_half, (integers,)))
    node.args = tuple(found)
    source, scale, low, high = quantized.args
    quantized.target, quantized.args = requantize, (source, wide, low, high, scale)
    quantized.meta[FACTORS] = (Factor(keys[2], keys[1], is_half=True), Factor(keys[2]))
