"""What really runs in int8: read from the graph that ONNX Runtime optimised, never from the request.

Quantised kernels exist only where the q/dq pattern fused; a layer whose pattern did not fuse runs in float and
dequantises its inputs on the way, which is slower than not quantising it. Those are listed as defects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit_targets._onnx.runtime import captured_name, optimised_model

if TYPE_CHECKING:
    import onnx

INT8_MACS = frozenset(
    "QLinearConv QLinearMatMul QGemm MatMulIntegerToFloat MatMulInteger ConvInteger ConvIntegerToFloat"
    " DynamicQuantizeMatMul DynamicQuantizeLSTM QAttention".split()
)
INT8_OTHERS = frozenset(
    "QLinearAdd QLinearMul QLinearConcat QLinearAveragePool QLinearGlobalAveragePool QLinearSigmoid QLinearLeakyRelu"
    " QLinearSoftmax QLinearReduceMean QLinearWhere QEmbedLayerNormalization".split()
)
FLOAT_MACS = frozenset(
    "Conv ConvTranspose Gemm MatMul FusedConv FusedGemm FusedMatMul NhwcFusedConv Attention MultiHeadAttention"
    " LSTM GRU RNN Einsum".split()
)
_WEIGHT_ONLY = "MatMulNBits"
_FLOAT, _UINT8, _INT8, _INT64, _FLOAT16 = 1, 2, 3, 7, 10  # onnx.TensorProto.DataType
_NAMES = {_FLOAT: "float32", _FLOAT16: "float16", _UINT8: "int8", _INT8: "int8"}
_TO_INTEGERS = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero"})
# They belong to a layer by name, and convert or move what it computed.
_NOT_COUNTED = frozenset(
    "Cast QuantizeLinear DequantizeLinear DynamicQuantizeLinear Constant Reshape Transpose Squeeze Unsqueeze Flatten"
    " Slice Expand Identity".split()
)


@dataclass(frozen=True)
class Counted:
    """What a model computes in.

    Attributes:
        executed: captured node name -> `int8`, `float32`, ..., or `int4-weights` for weight-only products. Of a layer
            that is several operators it is that of those that multiply, the widest where they differ.
        op_types: how many nodes of each type the optimised graph has.
        float_beside_dequantise: float multiply-accumulates whose weights, or both operands, are dequantised in every
            run: they were placed as int8, and the kernel did not fuse. A defect. A float layer that only reads the
            dequantised result of an int8 one is a boundary and not listed.
    """

    executed: Mapping[str, str]
    op_types: Mapping[str, int]
    float_beside_dequantise: tuple[str, ...]


def count(model: bytes | Path | str, known: Collection[str]) -> Counted:
    """Count in the graph that ONNX Runtime makes of a model on this machine.

    Args:
        model: serialised, or a path.
        known: captured node names, to which the names of fused nodes are traced back.

    Raises:
        ConversionError: ONNX Runtime refuses the model.
    """
    import onnx

    return count_optimised(onnx.load_from_string(optimised_model(model)), known)


def count_optimised(model: onnx.ModelProto, known: Collection[str]) -> Counted:
    """Do as `count` does, of a graph that is optimised already."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    types = _types(model.graph)
    products, others = dict[str, list[str]](), dict[str, list[str]]()
    defects = []
    for node in model.graph.node:
        name = captured_name(node.name, known)
        product = _product(node, types)
        if product and name:
            products.setdefault(name, []).append(product)
        elif name and node.op_type not in _NOT_COUNTED and (other := _other(node, types)):
            others.setdefault(name, []).append(other)
        if node.op_type in FLOAT_MACS and len(node.input) > 1 and node.input[1] in dequantised:
            defects.append(name or node.name)
    executed = {name: _widest(found) for name, found in {**others, **products}.items()}
    return Counted(executed, dict(Counter(node.op_type for node in model.graph.node)), tuple(defects))


def _widest(found: list[str]) -> str:
    order = ("float32", "float16")
    return min(found, key=lambda name: order.index(name) if name in order else len(order))


def _product(node: onnx.NodeProto, types: Mapping[str, int]) -> str:
    """What an operator that multiplies and accumulates computes in; "" for others."""
    if node.op_type in INT8_MACS:
        return "int8"
    if node.op_type == _WEIGHT_ONLY:
        bits = next(item.i for item in node.attribute if item.name == "bits")
        return f"int{bits}-weights"
    if node.op_type in FLOAT_MACS:
        return "float16" if any(types.get(value) == _FLOAT16 for value in node.input) else "float32"
    return ""


def _other(node: onnx.NodeProto, types: Mapping[str, int]) -> str:
    """What any other operator computes in: the type of what it reads; "" where that is neither float nor 8 bits."""
    if node.op_type in INT8_OTHERS:
        return "int8"
    read = [types[value] for value in node.input if value in types]
    return next((_NAMES[element] for element in read if element in _NAMES), "")


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    """Element types of values, as far as they follow from initialisers, inputs and the operators on the way.

    ONNX's own inference stops at the first fused operator of ONNX Runtime.
    """
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    found.update({value.name: value.type.tensor_type.elem_type for value in graph.input})
    for node in graph.node:
        element = _result_type(node, found)
        if element is not None:
            found.update(dict.fromkeys(filter(None, node.output), element))
    return found


def _result_type(node: onnx.NodeProto, types: Mapping[str, int]) -> int | None:
    if node.op_type == "Cast":
        return next(int(item.i) for item in node.attribute if item.name == "to")
    if node.op_type == "DequantizeLinear":
        return types.get(node.input[1], _FLOAT)
    if node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear"):
        return _UINT8
    if node.op_type in _TO_INTEGERS:
        return _INT64
    if node.op_type in INT8_MACS:
        return _FLOAT
    read = [types[value] for value in node.input if value in types]
    return next((element for element in read if element in _NAMES), read[0] if read else None)
