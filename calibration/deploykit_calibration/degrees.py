"""How many values that vary from sample to sample are multiplied into one: the degree of a tensor.

What falls off as normal noise does is of degree one: inputs, and sums of many products, whatever these are of. The
product of two such tensors falls off more slowly, as normal noise does when the root is taken of it; the square of one
does so, too, and a cube as its third root. A dozen samples of a product cannot show that, its operator says it
(`tails` takes the root before it asks how values fall off).

Only the operator and its sources are looked at. A factor that is constant or bounded (a gate, a mask, the reciprocal of
a norm) adds nothing. Refuses to guess of what is no polynomial: an exponential has no degree, and counts as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch.fx import Graph, Node

from deploykit_calibration.op_kinds import ACTIVATIONS, argument, kind_of

_BOUNDED = frozenset({"sigmoid", "hardsigmoid", "tanh", "clip", "relu6", "softmax"})
_OF_THE_LARGEST = (ACTIVATIONS - _BOUNDED) | {"add", "sub", "concat", "reshape", "split", "max_pool", "resize_nearest"}
_INVERSE = frozenset({"aten.rsqrt.default", "aten.reciprocal.default"})
_POWERS = frozenset({"aten.pow.Tensor_Scalar", "aten.pow_.Scalar"})
_MOVED = frozenset({"aten.neg.default", "aten.abs.default", "aten.where.self", "<built-in function getitem>"})
_QUOTIENTS = frozenset({"aten.div.Tensor", "aten.div_.Tensor", "aten.div.Scalar"})


def degrees(graph: Graph) -> dict[str, int]:
    """The degree of every tensor of a captured graph, by node name; 0 of what is constant or bounded."""
    found: dict[Node, int] = {}
    for node in graph.nodes:
        found[node] = _degree(node, found)
    return {node.name: degree for node, degree in found.items()}


def _degree(node: Node, found: Mapping[Node, int]) -> int:
    if node.op != "call_function":
        return int(node.op == "placeholder")
    kind, name = kind_of(node), str(node.target)
    sources = [found[source] for source in node.all_input_nodes]
    if not any(sources) or kind in _BOUNDED or name in _INVERSE:
        return 0
    rule = _RULES.get(kind) or _RULES.get(name)
    return rule(node, found) if rule else 1


def _largest(node: Node, found: Mapping[Node, int]) -> int:
    return max(found[source] for source in node.all_input_nodes)


def _product(node: Node, found: Mapping[Node, int]) -> int:
    """Both factors, which may be one tensor; a number is none."""
    return sum(found[factor] for factor in node.args[:2] if isinstance(factor, Node))


def _power(node: Node, found: Mapping[Node, int]) -> int:
    exponent = argument(node, 1, "exponent")
    whole = isinstance(exponent, int | float) and exponent >= 1 and float(exponent).is_integer()
    return _largest(node, found) * int(exponent) if whole else 1


def _quotient(node: Node, found: Mapping[Node, int]) -> int:
    """By a constant or a bounded value that of the dividend; what is divided by data is as it would be without."""
    return max(1, found[node.all_input_nodes[0]])


Rule = Callable[[Node, Mapping[Node, int]], int]


def _for_all(names: Iterable[str], rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


_RULES: Mapping[str, Rule] = {
    **_for_all((*_OF_THE_LARGEST, *_MOVED), _largest),
    "mul": _product,
    **_for_all(_POWERS, _power),
    **_for_all(_QUOTIENTS, _quotient),
    "aten.square.default": lambda node, found: 2 * _largest(node, found),
}
