"""Writes an ONNX graph node by node: names, constants, initialisers and per-node metadata.

Every translation of an operator (`ops/`) writes through this class, so that three things hold for the whole
graph: names are unique and come from the captured graph, equal constants exist once, and each node says which
module of the user's model it came from. It knows nothing of PyTorch operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from deploykit_targets._onnx.values import rename_reads

MODULE_PATH = "pkg.deploykit.module_path"

# torch dtype -> ONNX element type; what is not here cannot be an ONNX tensor and is refused by `element_type`.
ELEMENT_TYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.uint16: TensorProto.UINT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
}
# NumPy has none of these: the same bytes under another name.
_AS_INTEGERS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}


def element_type(dtype: torch.dtype) -> int:
    """The ONNX element type of a torch dtype.

    Raises:
        TypeError: ONNX has no such type (complex, quantised); the caller adds where it arose.
    """
    if dtype not in ELEMENT_TYPES:
        raise TypeError(f"ONNX graphs here cannot hold {dtype} tensors")
    return ELEMENT_TYPES[dtype]


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor in row order, little-endian, as ONNX stores them."""
    flat = tensor.detach().cpu().contiguous()
    if flat.dtype in _AS_INTEGERS:
        flat = flat.view(_AS_INTEGERS[flat.dtype])
    data: bytes = flat.numpy().tobytes()
    return data


@dataclass
class GraphWriter:
    """An ONNX graph under construction.

    Weights are written straight into `model`: copying them between protobuf messages costs more than all the rest.

    Attributes:
        opset: the version of the standard operator set the nodes are written for.
        nodes: what was written so far, in order.
        model: holds the initialisers; `finish` puts the nodes in.
    """

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    model: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    _scope: str = ""
    _module_path: str = ""
    _in_scope: int = 0
    _taken: set[str] = field(default_factory=set)
    _constants: dict[tuple[int, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def enter(self, scope: str, module_path: str, *, restart: bool = True) -> None:
        """Write what follows on behalf of the captured node `scope`, which lies in `module_path`."""
        self._scope, self._module_path = scope, module_path
        if restart:
            self._in_scope = 0

    @property
    def scope(self) -> tuple[str, str]:
        """The captured node written for now, and its module path."""
        return self._scope, self._module_path

    def reserve(self, name: str) -> str:
        """Take a name; if it is taken, the first free `name_1`, `name_2`, ... instead."""
        free, count = name, 0
        while free in self._taken:
            count += 1
            free = f"{name}_{count}"
        self._taken.add(free)
        return free

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name; an empty input name means 'left out'."""
        return self.multi(op_type, inputs, 1, domain=domain, **attributes)[0]

    def multi(
        self, op_type: str, inputs: Sequence[str], outputs: int, *, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Append a node with several outputs and return their names; attributes that are None are left out."""
        name = self.reserve(f"{self._scope}.{op_type.lower()}_{self._in_scope}")
        self._in_scope += 1
        names = (name,) if outputs == 1 else tuple(f"{name}.{index}" for index in range(outputs))
        trimmed = list(inputs)
        while trimmed and not trimmed[-1]:
            trimmed.pop()
        given = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(op_type, trimmed, names, name=name, domain=domain, **given)
        if self._module_path:
            node.metadata_props.add(key=MODULE_PATH, value=self._module_path)
        self.nodes.append(node)
        return names

    def copy(self, node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Append a node made elsewhere, under other value names; its metadata is replaced by ours."""
        copied = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=outputs[0], input=inputs, output=outputs)
        copied.attribute.extend(node.attribute)
        if self._module_path:
            copied.metadata_props.add(key=MODULE_PATH, value=self._module_path)
        self.nodes.append(copied)

    def initialiser(self, tensor: torch.Tensor, name: str) -> str:
        """Store a weight under (a free form of) its own name."""
        free = self.reserve(name)
        self._store(free, element_type(tensor.dtype), tuple(tensor.shape), raw_bytes(tensor))
        return free

    def copied_initialiser(self, tensor: TensorProto, name: str) -> str:
        """Store an initialiser made elsewhere under another name."""
        added = self.model.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = free = self.reserve(name)
        return free

    def _store(self, name: str, data_type: int, shape: tuple[int, ...], data: bytes) -> None:
        added = self.model.graph.initializer.add()
        added.name, added.data_type, added.raw_data = name, data_type, data
        added.dims.extend(shape)

    def constant(self, value: Any, dtype: torch.dtype, *, label: str = "const") -> str:
        """A small constant (scalar or nested list), stored once however often it is asked for."""
        tensor = value.to(dtype) if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=dtype)
        key = (element_type(tensor.dtype), tuple(tensor.shape), raw_bytes(tensor))
        if key not in self._constants:
            name = self.reserve(label if "." in label else f"{label}_{len(self._constants)}")
            self._store(name, *key)
            self._constants[key] = name
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> str:
        """A 1-D int64 constant, the form in which ONNX takes shapes, axes and pads."""
        return self.constant(list(values), torch.int64, label="ints")

    def finish(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], ir_version: int
    ) -> onnx.ModelProto:
        """Put nodes, inputs and outputs into the model and return it."""
        self.model.ir_version, self.model.producer_name = ir_version, "deploykit"
        self.model.opset_import.add(domain="", version=self.opset)
        graph = self.model.graph
        graph.name = name
        graph.node.extend(self.nodes)
        graph.input.extend(inputs)
        graph.output.extend(outputs)
        return self.model

    def rename(self, old: str, new: str, *, since: int = 0, with_node: bool = True) -> None:
        """Rename a value, and (by default) the node that makes it, in all nodes from position `since` on."""
        for node in self.nodes[since:]:
            rename_reads(node, {old: new})
            for index, name in enumerate(node.output):
                if name == old:
                    node.output[index] = new
            if with_node and node.name == old:
                node.name = new
