"""What the layers of a .tflite file compute in: operators and types, read from the file.

Tensors are named after the captured graph (`convert_child` marks its nodes), so an operator is found by the name of
its output, or by those of its weights where the output carries the name of a graph output. What cannot be found is
left out, and reported as unknown.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.flatbuffer import Operator, Tensor

# operators that do a layer's arithmetic, and those that only move or convert data
_PRODUCTS = frozenset(
    {
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "BATCH_MATMUL",
        "TRANSPOSE_CONV",
        "CONV_3D",
        "CONV_3D_TRANSPOSE",
    }
)
_WEIGHTED = _PRODUCTS | {"EMBEDDING_LOOKUP"}
_MOVES = frozenset(
    {"TRANSPOSE", "RESHAPE", "PAD", "PADV2", "QUANTIZE", "DEQUANTIZE", "CAST", "SLICE", "STRIDED_SLICE", "DELEGATE"}
)
_FLOATS = {"FLOAT32": "float32", "FLOAT16": "float16", "FLOAT64": "float64"}
_WEIGHTS = {"INT8": "int8-weights", "INT4": "int4-weights", "FLOAT16": "float16-weights"}


def executed(model: Any, layers: Collection[str]) -> dict[str, str]:
    """What each layer computes in.

    Args:
        model: a `ModelT`.
        layers: names in the captured graph.
    Returns:
        Layer name to `int8`, `float32`, ...; layers that are not found in the file are missing. A layer of several
        operators (an unrolled LSTM) counts as float where one of them is.
    """
    return {name: _least([arithmetic(op) for op in ops]) for name, ops in matched(model, layers).items()}


def stored(model: Any, layers: Collection[str]) -> dict[str, str]:
    """What the weights of each layer are stored in: `int4-weights`, `int8-weights`, `float16-weights` or `float32`."""
    sources = {op.outputs[0].name: op for op in flatbuffer.operators(model) if op.kind == "DEQUANTIZE"}
    found = {}
    for name, ops in matched(model, layers).items():
        weights = [_weight(op, sources) for op in ops if op.kind in _WEIGHTED]
        types = [{**_FLOATS, **_WEIGHTS}.get(weight.dtype, "unknown") for weight in weights if weight is not None]
        if types:
            found[name] = _least(types)
    return found


def layer_outputs(model: Any, layers: Collection[str]) -> set[str]:
    """Names of the tensors that the operators of some layers write."""
    return {op.outputs[0].name for ops in matched(model, layers).values() for op in ops}


def matched(model: Any, layers: Collection[str]) -> dict[str, list[Operator]]:
    """The operators of each layer: its products where it has any, else what carries its name."""
    wanted, found = set(layers), dict[str, list[Operator]]()
    for op in flatbuffer.operators(model):
        for name in () if op.kind in _MOVES else _layers_of(op, wanted):
            found.setdefault(name, []).append(op)
    for name, ops in found.items():
        found[name] = [op for op in ops if op.kind in _PRODUCTS] or ops
    return found


def _least(precisions: list[str]) -> str:
    """The widest of several: what is mixed is reported as not quantized."""
    order = ("unknown", "float64", "float32", "float16")
    return min(precisions, key=lambda name: order.index(name) if name in order else len(order))


def arithmetic(op: Operator) -> str:
    """What one operator computes in: integers where its weights are; data may then be rounded at run time."""
    data = [tensor for tensor in op.inputs if tensor is not None and tensor.dtype != "INT32"]
    types = {tensor.dtype for tensor in data}
    if "INT16" in types:
        return "int16x8" if op.kind in _PRODUCTS else "int16"
    if types & {"INT8", "INT4"}:
        return "int8"
    return next((_FLOATS[dtype] for dtype in sorted(types) if dtype in _FLOATS), "unknown")


def _layers_of(op: Operator, wanted: set[str]) -> list[str]:
    """The layers that an operator stands for: a fused activation counts as one, too."""
    sources = [op.outputs[0]]
    if op.kind in _PRODUCTS:
        sources += [tensor for tensor in op.inputs if tensor is not None and tensor.constant]
    names = ([name for name in tensor.name.split(";") if name in wanted] for tensor in sources)
    return next(filter(None, names), [])


def _weight(op: Operator, sources: dict[str, Operator]) -> Tensor | None:
    """The stored weight of an operator, seen through the operator that restores it to float."""
    for tensor in op.inputs[1:2]:
        if tensor is None:
            continue
        if tensor.constant:
            return tensor
        source = sources.get(tensor.name)
        if source is not None and source.inputs[0] is not None and source.inputs[0].constant:
            return source.inputs[0]
    return None
