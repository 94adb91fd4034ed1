"""Small clean-ups of a lowered graph: unused nodes, identities, equal constants, constant nodes, inner shapes.

The captured graph is normalised and folded already, so this is all that pays; each runtime optimises for itself.
Everything is exact: no clean-up changes a number.
"""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from deploykit_targets._onnx.values import remove_unused, rename_all

_SMALL = 4096  # elements


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Clean a model in place and return it."""
    graph = model.graph
    constants_to_initialisers(graph)
    behind, equal = _behind_identities(graph), _equal_initialisers(graph)
    rename_all(graph, equal | {name: equal.get(other, other) for name, other in behind.items()})
    remove_unused(graph)
    del graph.value_info[:]  # stale shapes make ONNX Runtime's tools fail
    return model


def constants_to_initialisers(graph: onnx.GraphProto) -> None:
    """Constant nodes (only spliced operators bring them) become initialisers, which every runtime treats as weights."""
    moved = []
    for index, node in enumerate(graph.node):
        tensor = _constant_tensor(node)
        if tensor is not None:
            added = graph.initializer.add()
            added.CopyFrom(tensor)
            added.name = node.output[0]
            moved.append(index)
    for index in reversed(moved):
        del graph.node[index]


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


def _behind_identities(graph: onnx.GraphProto) -> dict[str, str]:
    """What readers of an Identity may read instead: its input; one that gives a graph output its name stays."""
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in outputs:
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
    return renamed


def _equal_initialisers(graph: onnx.GraphProto) -> dict[str, str]:
    """Of equal small tensors the first one, by the name of each.

    Large weights are shared when they are written: comparing their bytes here would cost more than it saves.
    """
    first: dict[tuple[object, ...], str] = {}
    small = (tensor for tensor in graph.initializer if math.prod(tensor.dims) <= _SMALL)
    return {tensor.name: first.setdefault(_content(tensor), tensor.name) for tensor in small}


def _content(tensor: TensorProto) -> tuple[object, ...]:
    raw = tensor.raw_data if tensor.HasField("raw_data") else tensor.SerializeToString(deterministic=True)
    return tensor.data_type, tuple(tensor.dims), raw
