"""Replacing nodes of a finished ONNX model in place: weights by name, new tensors under free names."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from deploykit_targets._onnx.values import remove_unused


class Editor:
    """Edits one model; call `finish` once at the end.

    Args:
        model: edited in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._replaced: dict[int, list[NodeProto]] = {}
        self._positions = {node.output[0]: index for index, node in enumerate(model.graph.node)}
        self._added: dict[str, np.ndarray] = {}

    def weight(self, node: NodeProto, index: int) -> np.ndarray | None:
        """A float32 constant input as an array, None where the input is missing, computed or of another type."""
        tensor = self._weights.get(node.input[index]) if len(node.input) > index else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def add(self, array: np.ndarray, name: str) -> str:
        """Store a tensor, once where it is the same under the same name; returns the name it got."""
        free, count = name, 0
        while free in self._weights:
            if free in self._added and np.array_equal(self._added[free], array):
                return free
            count += 1
            free = f"{name}.{count}"
        added = self.model.graph.initializer.add()
        added.CopyFrom(numpy_helper.from_array(array, free))
        self._weights[free], self._added[free] = added, array
        return free

    def add_tensor(self, tensor: onnx.TensorProto) -> str:
        """Store a tensor of a type that NumPy lacks, once where its name and bytes are the same; returns its name."""
        name, count = tensor.name, 0
        while tensor.name in self._weights:
            if self._weights[tensor.name].raw_data == tensor.raw_data:
                return tensor.name
            count += 1
            tensor.name = f"{name}.{count}"
        added = self.model.graph.initializer.add()
        added.CopyFrom(tensor)
        self._weights[tensor.name] = added
        return tensor.name

    def replace(self, node: NodeProto, nodes: list[NodeProto]) -> None:
        """Put `nodes` in the place of `node`; they inherit its metadata (the module path)."""
        for new in nodes:
            if not new.metadata_props:
                new.metadata_props.extend(node.metadata_props)
        self._replaced[self._positions[node.output[0]]] = nodes

    def finish(self) -> None:
        """Write the replacements, drop weights that nothing reads, import the operator sets that are used."""
        graph = self.model.graph
        nodes = [new for index, node in enumerate(graph.node) for new in self._replaced.get(index, [node])]
        unique: dict[str, NodeProto] = {}
        for node in nodes:  # two layers that share a weight bring its expansion twice
            unique.setdefault(node.output[0], node)
        del graph.node[:]
        graph.node.extend(unique.values())
        remove_unused(graph)
        have = {entry.domain for entry in self.model.opset_import}
        for domain in sorted({node.domain for node in graph.node} - have):
            self.model.opset_import.add(domain=domain, version=1)
