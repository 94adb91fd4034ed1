"""Which tensors of a captured graph carry data, and which are indices, masks, positions or angles that stay in float.

The dtype of an input does not decide it: a camera's uint8 image is data, and so is what `rfft` or a codebook makes of
it. What is done with a tensor decides:

* what is computed from a float or complex input, or by a layer, is data, through integer and complex tensors too; an
  index (`argmax`) and a truth value (`x > 0`) made from it are not;
* what is computed from integer inputs alone is data where a layer multiplies it (an image, audio, a one-hot code), and
  not elsewhere: attention masks are added to scores, rotary angles are scaled and multiplied into data;
* a product of positions that is only read by sine and cosine is an angle: 8 bits would leave every second one of 512
  positions, and nothing of the angle;
* what is added to attention scores and was not computed by a layer is a mask or a bias, also where it is an input of
  floats: beside -30000, 8 bits would leave one step for all scores.

Only the graph is looked at; torch is imported to tell tensors from the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping

import torch
from torch.fx import Graph, Node

from deploykit_calibration.op_kinds import MACS, data_arguments, kind_of

_MOVES = frozenset({"reshape", "split", "concat", "pad"})
_ON_SCORES = frozenset({"reshape", "add", "sub", "mul", "clip", "pad"})
_ON_SCORES_BY_NAME = frozenset({"where", "masked_fill", "div", "maximum"})

_INDICES = frozenset({"argmax", "argmin", "argsort", "searchsorted", "bucketize", "nonzero"})
"""Ops whose result says where something is, not what it is."""

_VALUES_AND_INDICES = frozenset({"topk", "sort", "max", "min", "mode", "median", "nanmedian", "kthvalue"})
"""Ops whose second result is an index."""

_CASTS = frozenset({"_to_copy", "to", "type_as", "round", "floor", "ceil", "trunc"})
"""Ops that may make integers of floats and keep the value."""

_LOOKUPS = frozenset({"index", "index_select", "gather", "take"})
"""Ops whose integer operands, but for the first, say which values are taken."""

_ANGLES_OF = frozenset({"sin", "cos", "polar"})
_SCALES = frozenset({"mul", "div", "neg", "add", "to", "_to_copy", "complex", "expand"})
"""Ops behind which an angle still is one."""


def data_tensors(graph: Graph, kinds: Mapping[Node, str]) -> frozenset[Node]:
    """The floating (and complex) tensors of a graph that carry data.

    Args:
        graph: captured.
        kinds: the kinds of every node, as `op_kinds.kind_of` says.
    """
    return _Flow(graph, kinds).data()


def read_by_products(graph: Graph) -> frozenset[str]:
    """Names of what layers multiply, and of what that is only moved from: all that a placement of products rounds."""
    left = [source for node in graph.nodes if kind_of(node) in MACS for source in data_arguments(node)]
    found: set[Node] = set()
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes if kind_of(node) in _MOVES else []
    return frozenset(node.name for node in found)


class _Flow:
    """One graph under the questions above."""

    def __init__(self, graph: Graph, kinds: Mapping[Node, str]) -> None:
        self._nodes, self._kinds = list(graph.nodes), kinds
        self._layers = {n for n in self._nodes if kinds[n] in MACS and not self._is_angle(n)}
        self._computed = self._closure(self._layers)

    def data(self) -> frozenset[Node]:
        """Forward from what is data in itself, and back from what layers multiply."""
        masks = self._score_masks()
        inputs = {n for n in self._nodes if n.op == "placeholder" and not _is_integral(n)}
        looked_up = {n for n in self._nodes if self._kinds[n] == "embedding"}
        found = self._closure(inputs | looked_up | self._layers, masks)
        found |= self._multiplied(found | masks)
        return frozenset(node for node in found if not _is_integral(node))

    def _closure(self, seeds: set[Node], without: Collection[Node] = ()) -> set[Node]:
        """The seeds and what is computed from their values."""
        found = seeds.difference(without)
        for node in self._nodes:
            if node.op == "call_function" and node not in without and any(_keeps(node, x) for x in _in(node, found)):
                found.add(node)
        return found

    def _multiplied(self, known: Collection[Node]) -> set[Node]:
        """What layers multiply and was computed from integers, back to where it became a float."""
        pending = [x for layer in self._layers for x in data_arguments(layer)]
        found = set[Node]()
        while pending:
            node = pending.pop()
            if node.op == "call_function" and node not in found and node not in known and not _is_integral(node):
                found.add(node)
                if not _makes_of_angle(node):
                    pending += node.all_input_nodes
        return found

    def _is_angle(self, layer: Node) -> bool:
        """Whether a product of positions is read as an angle and as nothing else."""
        if self._kinds[layer] not in ("linear", "matmul") or _reads_floats(layer):
            return False
        pending, seen, angle = [layer], {layer}, False
        while pending:
            for user in pending.pop().users:
                if _makes_of_angle(user):
                    angle = True
                elif user not in seen and not _name(user).endswith("_like"):
                    if self._kinds[user] not in _MOVES and _name(user) not in _SCALES:
                        return False
                    seen.add(user)
                    pending.append(user)
        return angle

    def _score_masks(self) -> frozenset[Node]:
        """What is added to the operand of a softmax without being computed by a layer, back to its source."""
        sums = {n for end in self._nodes if self._kinds[end] == "softmax" for n in self._sums_before(end)}
        found = set[Node]()
        for node in reversed(self._nodes):
            other = node.op not in ("get_attr", "output") and node not in self._computed
            if other and node.users and all(user in sums or user in found for user in node.users):
                found.add(node)
        return frozenset(found)

    def _sums_before(self, softmax: Node) -> Iterator[Node]:
        """Additions, between scores and a softmax, of a tensor that a layer computed and one that none did."""
        pending, seen = list(_in(softmax, self._computed)), set[Node]()
        while pending:
            node = pending.pop()
            passes = self._kinds[node] in _ON_SCORES or _name(node) in _ON_SCORES_BY_NAME
            if node in seen or node in self._layers or not passes:
                continue
            seen.add(node)
            sources = list(_in(node, self._computed))
            pending += sources
            if self._kinds[node] in ("add", "sub") and len(sources) == 1:
                yield node


def _in(node: Node, found: Collection[Node]) -> Iterator[Node]:
    return (source for source in node.all_input_nodes if source in found)


def _reads_floats(layer: Node) -> bool:
    """Whether a float input of the model is among what a product was computed from."""
    pending, seen = list(layer.all_input_nodes), set[Node]()
    while pending:
        node = pending.pop()
        if node.op == "placeholder" and not _is_integral(node):
            return True
        if node not in seen:
            seen.add(node)
            pending += node.all_input_nodes
    return False


def _keeps(node: Node, source: Node) -> bool:
    """Whether the result of a call holds what the value of one of its operands says, and not where or whether."""
    value, name = node.meta.get("val"), _name(node)
    if not isinstance(value, torch.Tensor):
        return isinstance(value, tuple | list)  # a size is no data
    if value.dtype == torch.bool or name in _INDICES:
        return False
    if node.target is operator.getitem and _is_integral(node):
        return not (_name(source) in _VALUES_AND_INDICES and node.args[1] == 1)
    if _is_integral(source):
        return name not in _LOOKUPS or source is node.args[0]
    return name in _CASTS or not _is_integral(node)


def _makes_of_angle(node: Node) -> bool:
    """Whether a call reads an angle: sine, cosine, or the exponential of a complex number."""
    name = _name(node)
    return name in _ANGLES_OF or (name == "exp" and node.meta["val"].is_complex())


def _is_integral(node: Node) -> bool:
    """Whether a node's value is one tensor of integers or truth values."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex())


def _name(node: Node) -> str:
    """`sin` of `aten.sin.default`; "" for what is no operator."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else ""
