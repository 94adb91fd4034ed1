"""The forms ONNX Runtime's CPU build runs fastest, written from the standard ones. Exact: no number changes.

Only for files that ONNX Runtime reads: other runtimes match the standard forms. What was measured is in README.md.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from deploykit_targets._onnx.own_weights import own_weights

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul", "Add"})
_LIMITERS = frozenset({"Relu", "Clip"})


def for_onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a lowered model, float or q/dq, in place and return it."""
    sums_before_layer_norm(model.graph)
    limits_in_integers(model.graph)
    float_relus_behind_integers(model.graph)
    own_weights(model.graph)
    return model


def sums_before_layer_norm(graph: onnx.GraphProto) -> None:
    """An addition that a LayerNormalization reads is written as Sum.

    ONNX Runtime fuses Add and LayerNormalization into SkipLayerNormalization, whose CPU kernel takes 0.5 ms for
    128 x 768 where the two apart take 0.09 ms: a quarter of an int8 BERT. It does not fuse Sum.
    """
    normalised = {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in normalised:
            node.op_type = "Sum"


def limits_in_integers(graph: onnx.GraphProto) -> None:
    """Relu or Clip between a product and its QuantizeLinear moves behind it, as a Clip of integers.

    The product's kernel wants QuantizeLinear directly behind it. ONNX Runtime drops a limit that the range implies; one
    it does not imply, as where a concatenation made the range wider, would leave the product in float. Rounding is
    monotone, so that clipping codes at the code of the limit gives the same result.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for value in set(node.input):
            readers[value].append(node)
    kept: list[NodeProto] = []
    outputs = {value.name for value in graph.output}
    behind: dict[str, NodeProto] = {}
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type in _LIMITERS else None
        quantizers = readers[node.output[0]]
        movable = (
            source is not None
            and source.op_type in _PRODUCTS
            and len(readers[source.output[0]]) == 1
            and node.output[0] not in outputs
            and len(quantizers) == 1
            and quantizers[0].op_type == "QuantizeLinear"
        )
        codes = _limit_codes(node, quantizers[0], constants) if movable else None
        if codes is None:
            kept.append(node)
            continue
        quantizers[0].input[0] = node.input[0]
        behind[quantizers[0].name] = _integer_clip(graph, node, quantizers[0], codes)
    if behind:
        _rewrite(graph, kept, behind)


def float_relus_behind_integers(graph: onnx.GraphProto) -> None:
    """A Relu behind a Gemm of dequantised values, whose result stays float, is written as Max(x, 0).

    ONNX Runtime fuses Gemm and Relu before it looks for q/dq, and then dequantises and multiplies in float.
    """
    producers = {node.output[0]: node for node in graph.node}
    quantised = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    zero = "relu.zero"
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type == "Relu" and node.output[0] not in quantised else None
        if source is not None and source.op_type == "Gemm" and _reads_dequantised(source, producers):
            node.op_type = "Max"
            node.input.append(zero)
    if any(zero in node.input for node in graph.node):
        graph.initializer.add().CopyFrom(numpy_helper.from_array(np.zeros((), np.float32), zero))


def _reads_dequantised(node: NodeProto, producers: dict[str, NodeProto]) -> bool:
    source = producers.get(node.input[0])
    return source is not None and source.op_type == "DequantizeLinear"


def _limit_codes(limiter: NodeProto, quantizer: NodeProto, constants: dict[str, onnx.TensorProto]) -> np.ndarray | None:
    """Lowest and highest code that a limit lets pass, None where the range implies the limit or is not constant."""
    bounds = [0.0, np.inf] if limiter.op_type == "Relu" else [-np.inf, np.inf]
    for index, name in enumerate(limiter.input[1:]):
        if name and name not in constants:
            return None
        if name:
            bounds[index] = float(numpy_helper.to_array(constants[name]))
    if any(name not in constants for name in quantizer.input[1:]) or len(quantizer.input) < 3:
        return None
    scale, zero_point = (numpy_helper.to_array(constants[name]) for name in quantizer.input[1:])
    if scale.ndim or zero_point.dtype not in (np.uint8, np.int8):
        return None
    info = np.iinfo(zero_point.dtype)
    exact = np.rint(np.asarray(bounds, np.float32) / scale) + float(zero_point)
    codes = np.clip(exact, info.min, info.max)
    if codes[0] <= info.min and codes[1] >= info.max:
        return None
    limits: np.ndarray = codes.astype(zero_point.dtype)
    return limits


def _integer_clip(graph: onnx.GraphProto, limiter: NodeProto, quantizer: NodeProto, codes: np.ndarray) -> NodeProto:
    """The Clip that takes over the quantised value's name; the QuantizeLinear gets another."""
    final = quantizer.output[0]
    quantizer.output[0] = f"{final}.unlimited"
    names = [f"{final}.low", f"{final}.high"]
    for name, code in zip(names, codes, strict=True):
        graph.initializer.add().CopyFrom(numpy_helper.from_array(np.asarray(code), name))
    clip = helper.make_node("Clip", [quantizer.output[0], *names], [final], name=limiter.name)
    clip.metadata_props.extend(limiter.metadata_props)
    return clip


def _rewrite(graph: onnx.GraphProto, kept: list[NodeProto], behind: dict[str, NodeProto]) -> None:
    nodes = []
    for node in kept:
        nodes.append(node)
        if node.name in behind:
            nodes.append(behind[node.name])
    del graph.node[:]
    graph.node.extend(nodes)
