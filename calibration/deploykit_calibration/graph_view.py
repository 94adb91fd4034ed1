"""`GraphView`: the questions that placement asks a captured graph, answered once.

It never changes the graph. A *tensor* is a node whose value is one tensor; an *op* is a node that computes; for ops
with several results (split, LSTM) the tensors are the `getitem` nodes behind them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.fx import Graph, Node

from deploykit_calibration.data_flow import data_tensors
from deploykit_calibration.degrees import degrees
from deploykit_calibration.op_kinds import (
    RECURRENT,
    channel_axis,
    data_arguments,
    kind_of,
    shape_of,
    weight_argument,
)
from deploykit_calibration.products import mac_count

if TYPE_CHECKING:
    from deploykit.capture.model import CapturedModel

_MOVES_DATA = frozenset({"reshape", "split"})
_ELEMENTWISE = frozenset({"add", "sub", "mul"})
_FUSES = frozenset({"conv", "conv_transpose", "linear", "matmul", "add", "mul"})
_Answer = TypeVar("_Answer")


def _remembered(question: Callable[[GraphView, Node], _Answer]) -> Callable[[GraphView, Node], _Answer]:
    """Ask once for each node: the graph stays as it is, and a search plans it hundreds of times."""

    @wraps(question)
    def answer(self: GraphView, op: Node) -> _Answer:
        known: dict[Node, _Answer] = self._answers.setdefault(question.__name__, {})
        if op not in known:
            known[op] = question(self, op)
        return known[op]

    return answer


class GraphView:
    """Kinds, operands, and flow of a flat captured graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.kinds = {node: kind_of(node) for node in graph.nodes}
        self._answers: dict[str, dict[Node, Any]] = {}

    @classmethod
    def of(cls, captured: CapturedModel) -> GraphView:
        """The view of a captured model's graph, which nobody changes; made once."""
        if cls not in captured.derived:
            captured.derived[cls] = cls(captured.graph_module.graph)
        found: GraphView = captured.derived[cls]
        return found

    @cached_property
    def degrees(self) -> dict[str, int]:
        """How many values that vary are multiplied into one of each tensor, by node name; see `degrees`."""
        return degrees(self.graph)

    def ops(self) -> Iterator[Node]:
        """Nodes that compute, in execution order; `getitem` is part of its op."""
        return (node for node in self.order if node.op == "call_function" and node.target is not operator.getitem)

    def producer(self, tensor: Node) -> Node:
        """The op that computes a tensor."""
        return tensor.all_input_nodes[0] if tensor.target is operator.getitem else tensor

    @_remembered
    def results(self, op: Node) -> tuple[Node, ...]:
        """The float tensors that an op computes."""
        if isinstance(op.meta.get("val"), tuple | list):
            return tuple(user for user in op.users if user.target is operator.getitem and is_float(user))
        return (op,) if is_float(op) else ()

    @_remembered
    def operands(self, op: Node) -> tuple[Node, ...]:
        """The tensors that an op reads as activations: those of the table, else all its inputs."""
        known = self.kinds[op] != "other"
        return data_arguments(op) if known else tuple(op.all_input_nodes)

    @_remembered
    def macs(self, op: Node) -> int | None:
        """Multiply-accumulates of an op at the captured input sizes; None where the operator is not known."""
        return mac_count(op)

    @_remembered
    def stored_operands(self, op: Node) -> tuple[tuple[Node, int | None], ...]:
        """What an op computes with and the model stores, with the axis of its output channels; None has none.

        Of what is added or multiplied element by element, tensors of two axes and more; their first one is the axis.
        """
        weight = weight_argument(op)
        if weight is not None:
            return ((weight, channel_axis(op)),) if is_constant(weight) else ()
        if self.kinds[op] in RECURRENT:
            return tuple((node, 0) for node in op.all_input_nodes if is_constant(node) and len(shape_of(node)) > 1)
        if self.kinds[op] in _ELEMENTWISE:
            return tuple((node, 0) for node in self.operands(op) if is_constant(node) and len(shape_of(node)) > 1)
        operands = self.operands(op) if self.kinds[op] == "matmul" else ()
        return tuple(
            (node, 1 if position == 1 and len(shape_of(node)) == 2 else None)
            for position, node in enumerate(operands)
            if is_constant(node)
        )

    def tail(self, op: Node, fused: frozenset[str]) -> Node:
        """The activation that is fused to an op, where it has one; else the op."""
        if self.kinds[op] in _FUSES and len(op.users) == 1:
            (user,) = op.users
            if self.kinds[user] in fused and data_arguments(user) == (op,):
                return user
        return op

    @cached_property
    def activations(self) -> frozenset[Node]:
        """Floating tensors that carry data; attention masks, positions and angles do not (`data_flow`)."""
        return data_tensors(self.graph, self.kinds)

    @cached_property
    def returned(self) -> frozenset[Node]:
        """Tensors that the graph returns, also where only moved or joined on the way out."""
        output = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        pending, found = list(output.all_input_nodes), set[Node]()
        while pending:
            tensor = pending.pop()
            if tensor in found:
                continue
            found.add(tensor)
            op = self.producer(tensor)
            if self.kinds[op] in _MOVES_DATA or self.kinds[op] == "concat":
                pending += [source for source in data_arguments(op) if source in self.activations]
        return frozenset(found)

    def same_data(self, tensor: Node) -> Iterator[Node]:
        """The tensor, then what it was moved from by reshapes, nearest first."""
        while True:
            yield tensor
            op = self.producer(tensor)
            if op.op != "call_function" or self.kinds[op] not in _MOVES_DATA:
                return
            tensor = data_arguments(op)[0]


def masking_inputs(captured: CapturedModel) -> frozenset[str]:
    """Names of the float inputs that may hold -inf: masks of attention, and those whose example does."""
    data = GraphView.of(captured).activations
    nodes = captured.graph_module.graph.find_nodes(op="placeholder")
    return frozenset(
        spec.name
        for spec, node, example in zip(captured.inputs, nodes, captured.example_inputs, strict=True)
        if example.is_floating_point() and (node not in data or bool(example.isneginf().any()))
    )


def is_float(node: Node) -> bool:
    """Whether a node's value is one float32 tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def is_constant(node: object) -> bool:
    """Whether a node is a float tensor that is stored in the model."""
    return isinstance(node, Node) and node.op == "get_attr"


def read_last(graph: Graph) -> dict[Node, list[Node]]:
    """For each node that is the last to read others, those others; and itself, where nothing reads it."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for read in (node, *node.all_input_nodes):
            last[read] = node
    found: dict[Node, list[Node]] = {}
    for read, reader in last.items():
        found.setdefault(reader, []).append(read)
    return found
