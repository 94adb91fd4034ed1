"""The float type of an ONNX model: all of it in float16 or bfloat16, inputs and outputs as they were.

The type of a tensor in the file is what it is computed in; operators that the narrow type does not hold stay float32,
with casts around them.
`emulated` goes the other way for runtimes that lack the type: the same model in float32 with every value rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from deploykit.contract.errors import ConversionError

FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
_MAX: dict[int, float] = {FLOAT16: 65504.0, BFLOAT16: 3.3895314e38}
_MASK = -1e30  # what masks are filled with; the lowest value of the narrower type still masks
# Inputs that the standard defines as float32, whatever the operator computes in.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,), "NonMaxSuppression": (2, 3, 4)}
_SCALE = {"QuantizeLinear": 1, "DequantizeLinear": 1}


def retype(model: onnx.ModelProto, to: int, kept: Collection[str] = ()) -> None:
    """Turn every float32 tensor but inputs, outputs and what `kept` computes into `to`; in place.

    Args:
        model: lowered, float or with q/dq nodes (opset 19 or later, where their scales may be of that type).
        to: `FLOAT16` or `BFLOAT16`.
        kept: captured names of operators that stay float32: their constants too, with casts around them.

    Raises:
        ConversionError: a weight exceeds the range of the type, or a scale is too small for it; the message names it.
    """
    graph = model.graph
    wide = _Wide(model, to, frozenset(kept))
    constants = _kept_float(graph, wide)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in constants:
            tensor.CopyFrom(_narrowed(tensor, to))
    scales = {node.input[_SCALE[node.op_type]] for node in graph.node if node.op_type in _SCALE}
    _check_scales(graph, scales)
    for node in graph.node:
        if not wide.keeps(node):
            _retype_attributes(node, to)
    wide.cast(constants)


_SCATTERS = frozenset({"ScatterElements", "ScatterND"})


class _Wide:
    """The nodes that stay float32, and the casts between them and the others.

    Args:
        model: still float32 throughout.
        to: the narrow type.
        kept: captured names; operators that the standard does not define for the type are kept too.
    """

    def __init__(self, model: onnx.ModelProto, to: int, kept: frozenset[str]) -> None:
        self._graph, self._to = model.graph, to
        self._opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 20)
        self._names = {
            node.name for node in model.graph.node if node.name.partition(".")[0] in kept or self._is_undefined(node)
        }
        self._names |= {node.name for node in model.graph.node if next(_bodies(node), None) is not None}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._floats = _float_values(model)
        self._names |= {node.name for node in model.graph.node if self._divides_by_little(node)}
        self._keep_quantization()

    def _divides_by_little(self, node: NodeProto) -> bool:
        """Whether the narrow type has no 1 / scale of a quantization, by which compilers multiply."""
        if node.op_type != "QuantizeLinear" or node.input[1] not in self._constants:
            return False
        scales = numpy_helper.to_array(self._constants[node.input[1]]).astype(np.float64)
        return bool(np.any((scales * _MAX[self._to] < 1.0) | (scales > _MAX[self._to])))

    def _keep_quantization(self) -> None:
        """What quantizes a kept node's result, or dequantizes for kept nodes only, has values like theirs."""
        makers = {value: node for node in self._graph.node for value in node.output}
        readers: dict[str, list[NodeProto]] = {}
        for node in self._graph.node:
            for value in node.input:
                readers.setdefault(value, []).append(node)
        for node in self._graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in makers:
                if self.keeps(makers[node.input[0]]):
                    self._names.add(node.name)
            elif node.op_type == "DequantizeLinear":
                users = readers.get(node.output[0], [])
                if users and all(self.keeps(user) for user in users):
                    self._names.add(node.name)

    def keeps(self, node: NodeProto) -> bool:
        """Whether a node stays float32."""
        return node.name in self._names

    def _is_undefined(self, node: NodeProto) -> bool:
        """Whether a data input of a standard operator may be float32, and not of the narrow type.

        A scatter that adds may be narrow, and sums in float32 all the same: ONNX Runtime has no other, and sums of many
        small numbers are what float16 is worst at.
        """
        if node.op_type in _SCATTERS and any(one.name == "reduction" and one.s != b"none" for one in node.attribute):
            return True
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, self._opset, ""):
            return False
        schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        narrow = "tensor(float16)" if self._to == FLOAT16 else "tensor(bfloat16)"
        allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
        formal = [allowed.get(one.type_str, [one.type_str]) for one in (*schema.inputs[:1], *schema.outputs[:1])]
        return any("tensor(float)" in types and narrow not in types for types in formal)

    def cast(self, constants: Collection[str]) -> None:
        """Cast between inputs, kept nodes, the others and outputs, each value once in each direction."""
        made = {info.name for info in self._graph.input if info.name in self._floats}
        made |= {value for node in self._graph.node if self.keeps(node) for value in node.output}
        self._held = (made & self._floats) | set(constants)
        self._casts: dict[tuple[str, bool], str] = {}
        nodes: list[NodeProto] = []
        for node in self._graph.node:
            for holder, index in _reads(node):
                value, always = holder.input[index], holder is node and index in _ALWAYS_FLOAT.get(node.op_type, ())
                if value in self._floats and not always:
                    holder.input[index] = self._as(value, self.keeps(node), nodes)
            nodes.append(node)
        for info in self._graph.output:
            if info.name in self._floats and info.name not in self._held:
                inner = f"{info.name}.uncast"
                _rename_outputs(nodes, {info.name: inner})
                nodes.append(_cast_node(inner, info.name, TensorProto.FLOAT))
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _as(self, value: str, wide: bool, nodes: list[NodeProto]) -> str:
        """The name of a value in float32 or in the narrow type; the cast is appended where it is the first."""
        if (value in self._held) is wide:
            return value
        if (value, wide) not in self._casts:
            name = f"{value}.{'float' if wide else 'cast'}"
            nodes.append(_cast_node(value, name, TensorProto.FLOAT if wide else self._to))
            self._casts[value, wide] = name
        return self._casts[value, wide]


def _bodies(node: NodeProto) -> Iterator[onnx.GraphProto]:
    for item in node.attribute:
        yield from (item.g,) if item.type == onnx.AttributeProto.GRAPH else item.graphs


def _reads(node: NodeProto) -> Iterator[tuple[NodeProto, int]]:
    """(node, position) of everything that a node and the nodes in its bodies read."""
    yield from ((node, index) for index in range(len(node.input)))
    for body in _bodies(node):
        for inner in body.node:
            yield from _reads(inner)


def _cast_node(value: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [value], [result], name=result, to=to)


def _float_values(model: onnx.ModelProto) -> frozenset[str]:
    """Names of all float32 values, inputs and constants included; of subgraphs none."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    infos = (*typed.value_info, *typed.input, *typed.output)
    found = {info.name for info in infos if info.type.tensor_type.elem_type == TensorProto.FLOAT}
    return frozenset(found | {t.name for t in typed.initializer if t.data_type == TensorProto.FLOAT})


def _kept_float(graph: onnx.GraphProto, wide: _Wide) -> set[str]:
    """Constants that must stay float32; one that is read elsewhere too is copied for that use."""
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    kept: set[str] = set()
    for node in graph.node:
        for holder, index in _reads(node):
            always = wide.keeps(node) or index in _ALWAYS_FLOAT.get(node.op_type, ())
            if always and holder.input[index] in tensors:
                name = f"{holder.input[index]}.float"
                if name not in kept:
                    copy = graph.initializer.add()
                    copy.CopyFrom(tensors[holder.input[index]])
                    copy.name = name
                kept.add(name)
                holder.input[index] = name
    read = {holder.input[index] for node in graph.node for holder, index in _reads(node)}
    read |= {info.name for info in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return kept


def _narrowed(tensor: TensorProto, to: int) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    limit = _MAX[to]
    beyond = values[(np.abs(values) > limit) & (values > _MASK)]
    if beyond.size:
        raise ConversionError(
            f"{beyond.size} value(s) of {tensor.name!r} exceed the range of {_name(to)} (|x| <= {limit:.6g}):"
            f" {beyond.flat[0]:.6g}",
            hint='rescale the weight, or use precision="bf16" or "fp32"',
        )
    return numpy_helper.from_array(np.clip(values, -limit, limit).astype(_numpy(to)), tensor.name)


def _name(to: int) -> str:
    return str(TensorProto.DataType.Name(to)).lower()


def _numpy(to: int) -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(to)


def _check_scales(graph: onnx.GraphProto, scales: set[str]) -> None:
    for tensor in graph.initializer:
        if tensor.name in scales and np.any(numpy_helper.to_array(tensor).astype(np.float32) <= 0):
            kind = _name(tensor.data_type)
            raise ConversionError(f"scale {tensor.name!r} is too small for {kind}", hint='use precision="int8"')


def _retype_attributes(node: NodeProto, to: int) -> None:
    for item in node.attribute:
        if node.op_type in ("Cast", "EyeLike") and item.name in ("to", "dtype") and item.i == TensorProto.FLOAT:
            item.i = to
        elif item.type == onnx.AttributeProto.TENSOR and item.t.data_type == TensorProto.FLOAT:
            item.t.CopyFrom(_narrowed(item.t, to))


def _rename_outputs(nodes: list[NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        for holder, index in _reads(node):
            holder.input[index] = names.get(holder.input[index], holder.input[index])
        for index, value in enumerate(node.output):
            node.output[index] = names.get(value, value)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 model that rounds every value as a bfloat16 one would hold it.

    Args:
        model: as `retype(model, BFLOAT16)` made it; left as it is.
    Returns:
        A model for runtimes without bfloat16 kernels. Sums inside an operator are float32, as on accelerators.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    narrow = {info.name for info in typed.graph.value_info if info.type.tensor_type.elem_type == BFLOAT16}
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == BFLOAT16:
            tensor.CopyFrom(_widened(tensor))
    nodes: list[NodeProto] = []
    for node in wide.graph.node:
        nodes.extend(_rounded(node, narrow))
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rounded(node: NodeProto, narrow: set[str]) -> list[NodeProto]:
    """The node in float32, with casts to bfloat16 and back behind each of its narrow outputs."""
    _each_attribute(node, lambda tensor: _widened(tensor) if tensor.data_type == BFLOAT16 else tensor)
    if node.op_type == "Cast":
        for item in node.attribute:
            item.i = TensorProto.FLOAT if item.i == BFLOAT16 else item.i
    casts = []
    for index, value in enumerate(node.output):
        if value in narrow:
            exact, held = f"{value}.exact", f"{value}.bf16"
            node.output[index] = exact
            casts.append(helper.make_node("Cast", [exact], [held], name=held, to=BFLOAT16))
            casts.append(helper.make_node("Cast", [held], [value], name=f"{value}.wide", to=TensorProto.FLOAT))
    return [node, *casts]


def _each_attribute(node: NodeProto, change: Callable[[TensorProto], TensorProto]) -> None:
    for item in node.attribute:
        if item.type == onnx.AttributeProto.TENSOR:
            item.t.CopyFrom(change(item.t))
