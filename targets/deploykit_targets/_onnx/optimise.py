"""Small clean-ups of a lowered graph: unused nodes, identities, equal constants, constant nodes, inner shapes.

The captured graph is normalised and folded already, so this is all that pays; each runtime optimises for itself.
Everything is exact: no clean-up changes a number.
"""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from deploykit_targets._onnx.bodies import reads, rename_reads

_SMALL = 4096  # elements


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Clean a model in place and return it."""
    graph = model.graph
    constants_to_initialisers(graph)
    remove_identities(graph)
    merge_equal_initialisers(graph)
    remove_unused(graph)
    del graph.value_info[:]  # stale shapes make ONNX Runtime's tools fail
    return model


def constants_to_initialisers(graph: onnx.GraphProto) -> None:
    """Constant nodes (only spliced operators bring them) become initialisers, which every runtime treats as weights."""
    kept = []
    for node in graph.node:
        tensor = _constant_tensor(node)
        if tensor is None:
            kept.append(node)
            continue
        added = graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = node.output[0]
    _replace_nodes(graph, kept)


def _constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    kind = {
        "value_int": (TensorProto.INT64, []),
        "value_float": (TensorProto.FLOAT, []),
        "value_ints": (TensorProto.INT64, [len(attribute.ints)]),
        "value_floats": (TensorProto.FLOAT, [len(attribute.floats)]),
    }.get(attribute.name)
    if kind is None:
        return None
    value = onnx.helper.get_attribute_value(attribute)
    values = list(value) if attribute.name.endswith("s") else [value]
    return onnx.helper.make_tensor("", kind[0], kind[1], values)


def remove_identities(graph: onnx.GraphProto) -> None:
    """Readers of an Identity read its input; one that gives a graph output its name stays."""
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        rename_reads(node, renamed)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _replace_nodes(graph, kept)


def merge_equal_initialisers(graph: onnx.GraphProto) -> None:
    """One copy of equal small tensors, the first name stays; `remove_unused` drops the others.

    Large weights are shared when they are written: comparing their bytes here would cost more than it saves.
    """
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            renamed[tensor.name] = first.setdefault(_content(tensor), tensor.name)
    for node in graph.node:
        rename_reads(node, renamed)


def _content(tensor: TensorProto) -> tuple[object, ...]:
    raw = tensor.raw_data if tensor.HasField("raw_data") else tensor.SerializeToString(deterministic=True)
    return tensor.data_type, tuple(tensor.dims), raw


def remove_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes and initialisers that no graph output depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed |= reads(node)
            kept.append(node)
    _replace_nodes(graph, kept[::-1])
    unused = [index for index, tensor in enumerate(graph.initializer) if tensor.name not in needed]
    for index in reversed(unused):  # one by one: rebuilding the list would copy every weight
        del graph.initializer[index]


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    if len(nodes) < len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)
