"""The float type of an ONNX model: all of it in float16 or bfloat16, inputs and outputs as they were.

For runtimes whose networks are strongly typed (TensorRT): the type of a tensor in the file is what it is computed in.
`emulated` goes the other way for runtimes that lack the type: the same model in float32 with every value rounded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from deploykit.errors import ConversionError

FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
_MAX: dict[int, float] = {FLOAT16: 65504.0, BFLOAT16: 3.3895314e38}
_MASK = -1e30  # what masks are filled with; the lowest value of the narrower type still masks
# Inputs that the standard defines as float32, whatever the operator computes in.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,), "NonMaxSuppression": (2, 3, 4)}
_SCALE = {"QuantizeLinear": 1, "DequantizeLinear": 1}


def retype(model: onnx.ModelProto, to: int) -> None:
    """Turn every float32 tensor but inputs and outputs into `to`; in place.

    Args:
        model: lowered, float or with q/dq nodes (opset 19 or later, where their scales may be of that type).
        to: `FLOAT16` or `BFLOAT16`.

    Raises:
        ConversionError: a weight exceeds the range of the type, or a scale is too small for it; the message names it.
    """
    graph = model.graph
    kept = _kept_float(graph)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_narrowed(tensor, to))
    scales = {node.input[_SCALE[node.op_type]] for node in graph.node if node.op_type in _SCALE}
    _check_scales(graph, scales)
    for node in graph.node:
        _retype_attributes(node, to)
    _cast_ends(graph, to)


def _kept_float(graph: onnx.GraphProto) -> set[str]:
    """Constants that must stay float32; one that is read elsewhere too is copied for that use."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept: set[str] = set()
    for node in graph.node:
        for index in _ALWAYS_FLOAT.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] in tensors:
                name = f"{node.input[index]}.float"
                if name not in kept:
                    copy = graph.initializer.add()
                    copy.CopyFrom(tensors[node.input[index]])
                    copy.name = name
                kept.add(name)
                node.input[index] = name
    read = {value for node in graph.node for value in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return kept


def _narrowed(tensor: TensorProto, to: int) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    limit = _MAX[to]
    beyond = values[(np.abs(values) > limit) & (values > _MASK)]
    if beyond.size:
        raise ConversionError(
            f"{beyond.size} value(s) of {tensor.name!r} exceed the range of {_name(to)}: {beyond.flat[0]:.6g}",
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


def _cast_ends(graph: onnx.GraphProto, to: int) -> None:
    """Casts behind float inputs and in front of float outputs."""
    ahead = []
    for info in graph.input:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            name = f"{info.name}.cast"
            _rename_inputs(graph.node, {info.name: name})
            ahead.append(helper.make_node("Cast", [info.name], [name], name=name, to=to))
    behind = []
    for info in graph.output:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            name = f"{info.name}.uncast"
            _rename_outputs(graph.node, {info.name: name})
            behind.append(helper.make_node("Cast", [name], [info.name], name=name, to=TensorProto.FLOAT))
    nodes = [*ahead, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename_inputs(nodes: onnx.NodeProto, names: dict[str, str]) -> None:
    for node in nodes:
        for index, value in enumerate(node.input):
            node.input[index] = names.get(value, value)


def _rename_outputs(nodes: onnx.NodeProto, names: dict[str, str]) -> None:
    _rename_inputs(nodes, names)
    for node in nodes:
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
