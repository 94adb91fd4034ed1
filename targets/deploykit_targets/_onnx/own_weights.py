"""Every product of int8 weights gets a weight and a zero point of its own, so that ONNX Runtime can sum exactly.

On a CPU without VNNI a file is opened with ONNX Runtime's option for exact sums (`runtime.inference_session`). It puts
another weight and zero point, under names derived from theirs, in the place of each product's, and refuses a file in
which two products share one. Exact: no number changes. A shared weight is not stored twice: its other readers take it
through a Reshape, which ONNX Runtime folds into a copy when it loads the file.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

# Operator -> places of (int8 weight, its zero point) among its inputs.
_PLACES = {
    "DequantizeLinear": ((0, 2),),
    "MatMulInteger": ((1, 3),),
    "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
}


def own_weights(graph: onnx.GraphProto) -> None:
    """Separate weights and zero points that several products share, in place."""
    _Separation(graph).run()


class _Separation:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._taken = {*self._constants, *(value for node in graph.node for value in node.output)}
        self._latest: dict[str, str] = {}
        self._shared: set[str] = set()
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        expanded = self._one_reader_each()
        for node in expanded:
            for weight, zero_point in _PLACES.get(node.op_type, ()):
                if self._is_int8(node, weight):
                    self._separate(node, weight, zero_point)
            self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        self._drop_unread()

    def _one_reader_each(self) -> list[NodeProto]:
        """The nodes, with a DequantizeLinear of a weight for each product that reads it."""
        readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self._graph.node:
            for value in set(node.input):
                readers[value].append(node)
        nodes = []
        for node in self._graph.node:
            nodes.append(node)
            if node.op_type != "DequantizeLinear" or not self._is_int8(node, 0):
                continue
            for reader in readers[node.output[0]][1:]:
                nodes.append(self._again(node, reader))
        return nodes

    def _again(self, dequantize: NodeProto, reader: NodeProto) -> NodeProto:
        """A second DequantizeLinear, read by `reader` in the place of the first."""
        copy = NodeProto()
        copy.CopyFrom(dequantize)
        copy.name = copy.output[0] = self._free(dequantize.output[0])
        for index, value in enumerate(reader.input):
            if value == dequantize.output[0]:
                reader.input[index] = copy.output[0]
        return copy

    def _separate(self, node: NodeProto, weight: int, zero_point: int) -> None:
        name = node.input[weight]
        if name in self._latest:
            self._nodes.append(self._copied(node, weight))
        self._latest[name] = node.input[weight]
        if len(node.input) > zero_point and node.input[zero_point] in self._constants:
            stored = numpy_helper.to_array(self._constants[node.input[zero_point]])
            self._shared.add(node.input[zero_point])
            node.input[zero_point] = self._store(stored, f"{node.input[weight]}.zero_point")

    def _copied(self, reader: NodeProto, place: int) -> NodeProto:
        """The node that gives `reader` a weight of its own: of the copy before it, or equal nodes would be merged."""
        weight = reader.input[place]
        shape = np.asarray(self._constants[weight].dims, np.int64)
        reader.input[place] = name = self._free(f"{weight}.copy")
        inputs = [self._latest[weight], self._store(shape, f"{name}.shape")]
        return helper.make_node("Reshape", inputs, [name], name=name)

    def _store(self, array: np.ndarray, name: str) -> str:
        free = self._free(name)
        self._graph.initializer.add().CopyFrom(numpy_helper.from_array(array, free))
        return free

    def _drop_unread(self) -> None:
        """Drop the zero points that were shared; nodes stay as they are, in whatever order a converter left them."""
        read = {value for node in self._graph.node for value in node.input}
        read |= {value.name for value in self._graph.output}
        unread = [index for index, tensor in enumerate(self._graph.initializer) if tensor.name in self._shared - read]
        for index in reversed(unread):
            del self._graph.initializer[index]

    def _is_int8(self, node: NodeProto, place: int) -> bool:
        tensor = self._constants.get(node.input[place]) if len(node.input) > place else None
        return tensor is not None and tensor.data_type == TensorProto.INT8

    def _free(self, name: str) -> str:
        free, count = name, 0
        while free in self._taken:
            count += 1
            free = f"{name}.{count}"
        self._taken.add(free)
        return free
