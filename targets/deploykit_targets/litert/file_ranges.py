"""Ranges of our calibration for the tensors of a float .tflite file, whose operators are not those of the graph.

A tensor carries the name of the node that it was computed for; the last one of a name holds the node's value, those
before it are steps inside (a layer norm is eleven operators). What only moves data keeps its input's range. Tensors
whose range nobody observed have none, and operators that touch one stay float.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.flatbuffer import Operator, Tensor

Range = tuple[float, float]

# operators whose output holds values of their first input (and zeros)
_MOVES = frozenset(
    {
        *("TRANSPOSE", "RESHAPE", "PAD", "PADV2", "SLICE", "STRIDED_SLICE", "SPLIT", "GATHER", "GATHER_ND", "UNPACK"),
        *("SQUEEZE", "EXPAND_DIMS", "BROADCAST_TO", "MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR"),
        "RESIZE_NEAREST_NEIGHBOR",
    }
)


def file_ranges(model: Any, observed: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges by name of the file's float tensors.

    Args:
        model: a `ModelT` as the converter wrote it, before its ends were renamed.
        observed: the observed ranges, by node of the captured graph; `args_<i>` and `output_<i>` for its ends.
    """
    operators = list(flatbuffer.operators(model))
    found = _ends(model, observed)
    for name, node in _values(operators).items():
        if node in observed:
            found.setdefault(name, observed[node])
    for op in operators:
        source = op.inputs[0] if op.inputs else None
        if op.kind in _MOVES and source is not None and source.name in found:
            for tensor in op.outputs:
                found.setdefault(tensor.name, found[source.name])
    return found


def without_range(model: Any, found: Mapping[str, Range]) -> list[tuple[str, ...]]:
    """Names of the outputs of every operator that reads or writes a float tensor without a range."""
    return [
        tuple(tensor.name for tensor in op.outputs)
        for op in flatbuffer.operators(model)
        if any(_needs(tensor) and tensor.name not in found for tensor in (*op.inputs, *op.outputs) if tensor)
    ]


def _needs(tensor: Tensor) -> bool:
    return tensor.dtype == "FLOAT32" and not tensor.constant


def _values(operators: list[Operator]) -> dict[str, str]:
    """Tensor -> node, for the last tensor that is named after a node, and for what was only moved to get there."""
    last: dict[str, str] = {}
    sources: dict[str, str] = {}
    for op in operators:
        for tensor in op.outputs:
            last[node_of(tensor.name)] = tensor.name
            if op.kind in _MOVES and op.inputs[0] is not None:
                sources[tensor.name] = op.inputs[0].name
    found = {}
    for node, name in last.items():
        same: str | None = name
        while same is not None and node_of(same) == node:
            found[same] = node
            same = sources.get(same)
    return found


def pad_within(model: Any, found: Mapping[str, Range]) -> None:
    """Let max pools pad with the least value observed, in place: minus infinity has no place in a finite range."""
    import numpy as np

    schema, graph = flatbuffer.schema(), model.subgraphs[0]
    for op, read in zip(graph.operators, list(flatbuffer.operators(model)), strict=True):
        source = read.inputs[0] if read.kind == "PADV2" else None
        if source is None or source.name not in found or flatbuffer.constant(model, op.inputs[2]).min() > -1e30:
            continue
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.array([found[source.name][0]], np.float32).view(np.uint8)
        model.buffers.append(buffer)
        old = graph.tensors[op.inputs[2]]
        tensor.name, tensor.shape, tensor.type = f"{read.outputs[0].name}_value".encode(), old.shape, old.type
        tensor.buffer, tensor.hasRank = len(model.buffers) - 1, old.hasRank
        graph.tensors.append(tensor)
        op.inputs = [*op.inputs[:2], len(graph.tensors) - 1]


def node_of(name: str) -> str:
    """The node that a tensor was computed for: the first of the names that fusing has joined."""
    return name.split(";", 1)[0]


def _ends(model: Any, observed: Mapping[str, Range]) -> dict[str, Range]:
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    ends = {flatbuffer.text(e.name): int(e.tensorIndex) for e in (*signature.inputs, *signature.outputs)}
    return {
        flatbuffer.text(graph.tensors[index].name): observed[name] for name, index in ends.items() if name in observed
    }
