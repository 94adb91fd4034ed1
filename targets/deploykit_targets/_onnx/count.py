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
_FLOAT16 = 10  # onnx.TensorProto.FLOAT16


@dataclass(frozen=True)
class Counted:
    """What a model computes in.

    Attributes:
        executed: captured node name -> `int8`, `float32`, ..., or `int4-weights` for weight-only products.
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
    """As `count`, of a graph that is optimised already."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    half = _float16_values(model.graph)
    executed: dict[str, str] = {}
    defects = []
    for node in model.graph.node:
        name = captured_name(node.name, known)
        precision = _precision(node, half)
        if precision and name:
            executed[name] = precision
        if node.op_type in FLOAT_MACS and len(node.input) > 1 and node.input[1] in dequantised:
            defects.append(name or node.name)
    return Counted(executed, dict(Counter(node.op_type for node in model.graph.node)), tuple(defects))


def _precision(node: onnx.NodeProto, half: frozenset[str]) -> str:
    """What a counted operator computes in; "" for one that is not counted."""
    if node.op_type in INT8_MACS or node.op_type in INT8_OTHERS:
        return "int8"
    if node.op_type == _WEIGHT_ONLY:
        bits = next(item.i for item in node.attribute if item.name == "bits")
        return f"int{bits}-weights"
    if node.op_type in FLOAT_MACS:
        return "float16" if any(value in half for value in node.input) else "float32"
    return ""


def _float16_values(graph: onnx.GraphProto) -> frozenset[str]:
    """Values known to be float16: weights, and results of casts to it."""
    found = {tensor.name for tensor in graph.initializer if tensor.data_type == _FLOAT16}
    for node in graph.node:
        if node.op_type == "Cast" and any(item.i == _FLOAT16 for item in node.attribute):
            found.add(node.output[0])
    return frozenset(found)
