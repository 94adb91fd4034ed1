"""An ONNX graph as the lint checks look at it: who makes a value, who reads it, and which values are constant.

Files of any origin are looked at, broken ones too: every walk ends, even in a graph that goes in circles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.shape_inference import infer_shapes

from deploykit.contract.errors import UsageError

_LARGE_BYTES = 4096
# Ops that only move values: a constant or a dequantized tensor seen through them is still one.
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand"})


@dataclass(frozen=True)
class Operand:
    """One input of a node with what made it: `node` is None for graph inputs and constants."""

    value: str
    node: NodeProto | None


class OnnxView:
    """Look-ups over one graph of a model; `views` has those of the graphs inside it.

    Args:
        model: left as it is.
        graph: the graph that is looked at; by default the model's own.
        outer: the view of the graph around it, whose values it may read; None for the model's own.
    """

    def __init__(self, model: onnx.ModelProto, graph: GraphProto | None = None, outer: OnnxView | None = None) -> None:
        self.model = model
        self.graph = model.graph if graph is None else graph
        self.outer = outer
        self.nodes = list(self.graph.node)
        self.producers: dict[str, NodeProto] = {} if outer is None else dict(outer.producers)
        self._initialisers: dict[str, TensorProto] = {} if outer is None else dict(outer._initialisers)
        for value in self.graph.input:  # a name that is taken again hides the outer one
            self.producers.pop(value.name, None)
            self._initialisers.pop(value.name, None)
        self.producers |= {output: node for node in self.nodes for output in node.output if output}
        self._initialisers |= {proto.name: proto for proto in self.graph.initializer}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in _with_inner(self.nodes):
            for name in node.input:
                if name:
                    self.consumers[name].append(node)
        self._positions = {node_name(node): index for index, node in enumerate(_with_inner(self.nodes))}
        self.outputs = {output.name for output in self.graph.output}

    @cached_property
    def opset(self) -> int:
        """Version of the standard operator set; 0 where the model imports none."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Number of axes of the values whose shape the file says or standard inference finds."""
        graph = self.graph
        if self.outer is None:
            try:
                graph = infer_shapes(_without_weights(self.model)).graph
            except Exception:  # of a broken file, of which other rules tell; it raises types of its own
                graph = self.graph
        infos = (*graph.value_info, *graph.input, *graph.output)
        shapes = {info.name: info.type.tensor_type for info in infos}
        found = {name: len(kind.shape.dim) for name, kind in shapes.items() if kind.HasField("shape")}
        return found | {tensor.name: len(tensor.dims) for tensor in self.graph.initializer}

    def views(self) -> Iterator[OnnxView]:
        """This graph, then every graph inside its `If`, `Loop` and `Scan` nodes, to any depth."""
        yield self
        for node in self.nodes:
            for graph in _graphs_of(node):
                yield from OnnxView(self.model, graph, self).views()

    def position(self, name: str) -> int:
        """Index of a node, those of inner graphs behind the node that holds them; -1 for the whole model."""
        return -1 if not name else self._positions.get(name, len(self._positions))

    def cycle(self) -> tuple[NodeProto, ...]:
        """Nodes that feed each other in a circle, each before the next; empty in a sound graph."""
        makers = {output: index for index, node in enumerate(self.nodes) for output in node.output if output}
        sorter = TopologicalSorter(
            {
                index: {makers[value] for inner in _with_inner([node]) for value in inner.input if value in makers}
                for index, node in enumerate(self.nodes)
            }
        )
        try:
            sorter.prepare()
        except CycleError as error:
            return tuple(self.nodes[index] for index in error.args[1][1:])
        return ()

    def input(self, node: NodeProto, index: int) -> Operand | None:
        """The operand at `index`; None where it is left out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        value = node.input[index]
        return Operand(value, self.producers.get(value))

    def back(self, value: str, through: Collection[str]) -> Iterator[str]:
        """A value, then those that it was made of through operators of the types `through`, first inputs only."""
        seen: set[str] = set()
        while value and value not in seen:
            yield value
            seen.add(value)
            node = self.producers.get(value)
            if node is None or node.op_type not in through or not node.input:
                return
            value = node.input[0]

    def constant_proto(self, value: str) -> TensorProto | None:
        """The tensor behind a value that is constant, seen through nothing but Constant and Identity nodes."""
        source = _last(self.back(value, {"Identity"}))
        if source in self._initialisers:
            return self._initialisers[source]
        node = self.producers.get(source)
        if node is None or node.op_type != "Constant":
            return None
        return next((entry.t for entry in node.attribute if entry.type == AttributeProto.TENSOR), None)

    def constant(self, value: str) -> np.ndarray | None:
        """The values of a constant; None where it is not one.

        Raises:
            UsageError: they lie in a file of their own that was not loaded.
        """
        proto = self.constant_proto(value)
        if proto is None:
            return None
        if proto.data_location == TensorProto.EXTERNAL:
            raise UsageError(f"the values of {value!r} lie in a file that is not loaded", hint="give the model's path")
        return numpy_helper.to_array(proto)

    def is_constant(self, value: str) -> bool:
        """Whether a value depends on no graph input, seen through q, dq and ops that only move values."""
        through = MOVES | {"QuantizeLinear", "DequantizeLinear", "Cast"}
        return any(self.constant_proto(source) is not None for source in self.back(value, through))

    def origin(self, value: str) -> NodeProto | None:
        """The node that made a value, seen through ops that only move values."""
        node = self.producers.get(_last(self.back(value, MOVES)))
        return None if node is None or node.op_type in MOVES else node

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


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large constants as their types and sizes alone, which is all that shape inference reads."""
    plain = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    plain.graph.node.extend(graph.node)
    plain.graph.input.extend(graph.input)
    plain.graph.output.extend(graph.output)
    plain.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        if tensor.ByteSize() > _LARGE_BYTES:
            plain.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        else:
            plain.graph.initializer.append(tensor)
    return plain


def node_name(node: NodeProto) -> str:
    """A node's name, or its first output's where it has none."""
    return node.name or (node.output[0] if node.output else node.op_type)


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _graphs_of(node: NodeProto) -> Iterator[GraphProto]:
    for entry in node.attribute:
        if entry.type == AttributeProto.GRAPH:
            yield entry.g
        yield from entry.graphs


def _with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in _graphs_of(node):
            yield from _with_inner(graph.node)


def _last(values: Iterator[str]) -> str:
    last = ""
    for last in values:  # noqa: B007  the last one is what is asked for
        pass
    return last
