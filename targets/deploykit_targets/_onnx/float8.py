"""int8 q/dq nodes -> float8 E4M3 ones, at the same places and for the same ranges: in the ONNX file and simulated.

The range of a symmetric int8 scale is 127 steps; E4M3FN reaches 448, so a scale becomes scale * 127 / 448. Weights are
rounded from their float values, never from int8 ones. The simulation is made of the q/dq graph in PyTorch and not of
the file, so that the parity chain finds what the lowering did wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.fx import Node

from deploykit.capture import CapturedModel
from deploykit.capture.calls import stored
from deploykit.contract.errors import ConversionError
from deploykit_calibration.placement import QuantizedGraph
from deploykit_calibration.simulate import SimulatedModel, fake_quantize
from deploykit_targets._onnx.optimise import remove_unused

MAX_E4M3 = 448.0
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_OPS = torch.ops.quantized_decomposed
_DEQUANTIZE = (_OPS.dequantize_per_tensor.default, _OPS.dequantize_per_channel.default)


def float8_scale(scale: np.ndarray) -> np.ndarray:
    """The E4M3 scale that covers the range of a symmetric int8 scale, in the same type."""
    found: np.ndarray = (scale * (127.0 / MAX_E4M3)).astype(scale.dtype)
    return found


# -- simulated -----------------------------------------------------------------------------------------------------


def fake_float8(x: Tensor, scale: float | Tensor) -> Tensor:
    """Round to E4M3 multiples of `scale`, ties to even, saturating: QuantizeLinear and DequantizeLinear of ONNX."""
    return x.div(scale).clamp_(-MAX_E4M3, MAX_E4M3).to(torch.float8_e4m3fn).to(x.dtype).mul_(scale)


def simulated_float8(
    captured: CapturedModel, quantized: QuantizedGraph, weights: Mapping[str, np.ndarray]
) -> SimulatedModel:
    """The q/dq graph in PyTorch with E4M3 in place of int8: the reference of an fp8 artifact.

    Args:
        captured: the float model.
        quantized: symmetric int8, with folded weights.
        weights: captured node name to its float32 weight.

    Raises:
        ConversionError: a weight is not among `weights`.
    """
    simulated = SimulatedModel(captured, quantized)
    module = simulated.graph_module
    for node in module.graph.nodes:
        if node.target is fake_quantize:
            source, scale = node.args[:2]
            node.target, node.args = fake_float8, (source, _scale_of(scale))
    for node in quantized.graph_module.graph.nodes:
        if node.target in _DEQUANTIZE and node.args[0].op == "get_attr":
            setattr(module, node.name, _simulated_weight(quantized, node, weights))
    module.recompile()
    return simulated


def _simulated_weight(quantized: QuantizedGraph, node: Node, weights: Mapping[str, np.ndarray]) -> Tensor:
    """What the dequantize node of a stored weight gives, rounded from the float values."""
    found = next((weights[user.name] for user in node.users if user.name in weights), None)
    if found is None:
        raise ConversionError(f"the float weight of {node.name} is not known, which float8 needs")
    args: tuple[Any, ...] = node.args
    value, scale = torch.from_numpy(found), args[1]
    if not isinstance(scale, Node):
        return fake_float8(value, _scale_of(scale))
    scales, shape = stored(quantized.graph_module, str(scale.target)), [1] * value.ndim
    assert isinstance(scales, Tensor)
    shape[args[3]] = -1
    return fake_float8(value, torch.from_numpy(float8_scale(scales.detach().numpy())).reshape(shape))


def _scale_of(scale: Any) -> float:
    return float(float8_scale(np.array(scale, np.float32)))


# -- in the file ---------------------------------------------------------------------------------------------------


def to_float8(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> None:
    """Change the q/dq nodes of a model in place.

    Args:
        model: lowered with int8 q/dq nodes.
        weights: captured node name to its float32 weight.

    Raises:
        ConversionError: a q/dq node is not symmetric int8 with constant scales, or a weight is not among `weights`.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, str] = {}
    _requantize_weights(graph, tensors, weights)
    for node in graph.node:
        if node.op_type not in _PAIR:
            continue
        if len(node.input) < 3 or node.input[1] not in tensors or node.input[2] not in tensors:
            raise ConversionError(f"{node.name} has no constant scale and zero point, which float8 needs")
        node.input[2] = _zero(graph, tensors, node.input[2], made)
        node.input[1] = _scale(graph, tensors, node.input[1], made)
    remove_unused(graph)


def _requantize_weights(
    graph: onnx.GraphProto, tensors: dict[str, TensorProto], weights: Mapping[str, np.ndarray]
) -> None:
    """Replace int8 weights by float8 ones made of the float values."""
    producers = {output: node for node in graph.node for output in node.output}
    done: set[str] = set()
    for node in graph.node:
        source = producers.get(node.input[1]) if node.op_type in _WEIGHTED and len(node.input) > 1 else None
        while source is not None and source.op_type in ("Transpose", "Reshape"):
            source = producers.get(source.input[0])
        if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in tensors:
            continue
        if source.input[0] not in done:
            tensor = tensors[source.input[0]]
            scale = float8_scale(numpy_helper.to_array(tensors[source.input[1]]).astype(np.float32))
            values = _float_weight(node, tensor, weights)
            shape = [1] * values.ndim
            if scale.ndim and scale.size > 1:
                shape[next((item.i for item in source.attribute if item.name == "axis"), 1)] = -1
            rounded = np.clip(values / scale.reshape(shape), -MAX_E4M3, MAX_E4M3).astype(_float8())
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
            done.add(tensor.name)


def _float_weight(node: onnx.NodeProto, stored: TensorProto, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """The float weight of an operator in the layout in which its int8 one is stored: as it is, or transposed."""
    found = weights.get(node.name.split(".", maxsplit=1)[0])
    codes = numpy_helper.to_array(stored).astype(np.float32)
    layouts = [] if found is None else [found, found.T]
    fitting = [layout for layout in layouts if layout.shape == codes.shape]
    if not fitting:
        raise ConversionError(f"the float weight of {node.name} is not known, which float8 needs")
    # A square matrix fits both ways; only the right one has the signs of its int8 codes.
    return max(fitting, key=lambda layout: float(np.sum(np.sign(layout) * codes)))


def _zero(graph: onnx.GraphProto, tensors: dict[str, TensorProto], name: str, made: dict[str, str]) -> str:
    if name not in made:
        old = numpy_helper.to_array(tensors[name])
        if tensors[name].data_type != TensorProto.INT8 or np.any(old != 0):
            raise ConversionError(f"zero point {name!r} is not a symmetric int8 one, which float8 needs")
        made[name] = _add(graph, old.astype(_float8()), f"{name}.float8")
    return made[name]


def _scale(graph: onnx.GraphProto, tensors: dict[str, TensorProto], name: str, made: dict[str, str]) -> str:
    if name not in made:
        old = numpy_helper.to_array(tensors[name])
        made[name] = _add(graph, float8_scale(old), f"{name}.float8")
    return made[name]


def _add(graph: onnx.GraphProto, values: np.ndarray, name: str) -> str:
    graph.initializer.add().CopyFrom(numpy_helper.from_array(values, name))
    return name


def _float8() -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
