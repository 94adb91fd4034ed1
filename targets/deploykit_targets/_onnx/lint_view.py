"""An ONNX graph as the lint checks look at it: who makes a value, who reads it, and which values are constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

# Ops that only move values: a constant or a dequantized tensor seen through them is still one.
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand"})


@dataclass(frozen=True)
class Operand:
    """One input of a node with what made it: `node` is None for graph inputs and constants."""

    value: str
    node: NodeProto | None


class GraphView:
    """Look-ups over the main graph of a model.

    Args:
        model: left as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.producers = {output: node for node in self.nodes for output in node.output if output}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for value in node.input:
                if value:
                    self.consumers[value].append(node)
        self._initialisers: dict[str, TensorProto] = {proto.name: proto for proto in model.graph.initializer}
        self._positions = {node_name(node): index for index, node in enumerate(self.nodes)}
        self.outputs = {output.name for output in model.graph.output}

    @cached_property
    def opset(self) -> int:
        """Version of the standard operator set; 0 where the model imports none."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    def position(self, name: str) -> int:
        """Index of a node; -1 for the whole model, the end for nodes of inner graphs."""
        return -1 if not name else self._positions.get(name, len(self.nodes))

    def all_nodes(self) -> Iterator[NodeProto]:
        """The nodes of the graph and of every graph inside `If`, `Loop` and `Scan`."""
        yield from _with_inner(self.nodes)

    def input(self, node: NodeProto, index: int) -> Operand | None:
        """The operand at `index`; None where it is left out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        value = node.input[index]
        return Operand(value, self.producers.get(value))

    def constant_proto(self, value: str) -> TensorProto | None:
        """The tensor behind a value that is constant, seen through nothing but Constant and Identity nodes."""
        if value in self._initialisers:
            return self._initialisers[value]
        node = self.producers.get(value)
        if node is not None and node.op_type == "Constant":
            tensors: list[TensorProto] = [entry.t for entry in node.attribute if entry.type == AttributeProto.TENSOR]
            return tensors[0] if tensors else None
        if node is not None and node.op_type == "Identity":
            return self.constant_proto(node.input[0])
        return None

    def constant(self, value: str) -> np.ndarray | None:
        """The values of a constant; None where it is not one."""
        proto = self.constant_proto(value)
        return None if proto is None else numpy_helper.to_array(proto)

    def is_constant(self, value: str) -> bool:
        """Whether a value depends on no graph input, seen through q, dq and ops that only move values."""
        if self.constant_proto(value) is not None:
            return True
        node = self.producers.get(value)
        if node is None or node.op_type not in MOVES | {"QuantizeLinear", "DequantizeLinear", "Cast"}:
            return False
        return self.is_constant(node.input[0])

    def origin(self, value: str) -> NodeProto | None:
        """The node that made a value, seen through ops that only move values."""
        node = self.producers.get(value)
        while node is not None and node.op_type in MOVES:
            node = self.producers.get(node.input[0])
        return node

    def is_dequantized(self, value: str) -> bool:
        """Whether a value comes from DequantizeLinear."""
        node = self.origin(value)
        return node is not None and node.op_type == "DequantizeLinear"

    def quantized_type(self, node: NodeProto) -> int | None:
        """Element type on the integer side of a q or dq node; None where the graph does not tell."""
        zero_point = self.input(node, 2)
        if zero_point is not None:
            proto = self.constant_proto(zero_point.value)
            return proto.data_type if proto is not None else None
        if node.op_type == "QuantizeLinear":
            return attribute(node, "output_dtype", 0) or TensorProto.UINT8
        proto = self.constant_proto(node.input[0])
        if proto is not None:
            return proto.data_type
        maker = self.origin(node.input[0])
        return self.quantized_type(maker) if maker is not None and maker.op_type == "QuantizeLinear" else None


def node_name(node: NodeProto) -> str:
    """A node's name, or its first output's where it has none."""
    return node.name or (node.output[0] if node.output else node.op_type)


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _with_inner(nodes: list[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for entry in node.attribute:
            if entry.type == AttributeProto.GRAPH:
                yield from _with_inner(list(entry.g.node))
