"""The values of an ONNX graph: who reads them, other names for them, and which of them are needed.

Operators with a body (`Loop`, `If`, `Scan`, `SequenceMap`) read any value written before them, without naming it among
their inputs. Whoever renames, moves or drops values has to look into bodies; these are the functions for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from onnx import AttributeProto, GraphProto, NodeProto


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that an operator holds, not those inside them."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def reads(node: NodeProto) -> set[str]:
    """Every value that a node reads: its inputs, and what its bodies take from around it."""
    return {name for name in node.input if name} | {name for body in bodies(node) for name in _free(body)}


def _free(body: GraphProto) -> set[str]:
    own = _own(body)
    used = {name for node in body.node for name in reads(node)} | {value.name for value in body.output}
    return used - own


def _own(body: GraphProto) -> set[str]:
    made = {name for node in body.node for name in node.output}
    return made | {value.name for value in body.input} | {tensor.name for tensor in body.initializer}


def rename_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Let a node, and its bodies, read other values; what a body defines itself under such a name is left alone."""
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    for body in bodies(node):
        own = _own(body)
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            rename_reads(inner, outer)
        for value in body.output:
            value.name = outer.get(value.name, value.name)


def rename_all(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Let every node of a graph read other values; graph outputs keep their names."""
    for node in graph.node:
        rename_reads(node, names)


def scope_names(node: NodeProto, unique: Callable[[str], str]) -> None:
    """Give everything that a node's bodies define a name that nothing else in the model has."""
    for body in bodies(node):
        names = {name: unique(name) for name in sorted(_own(body)) if name}
        for value in (*body.input, *body.output, *body.initializer, *body.value_info):
            value.name = names.get(value.name, value.name)
        for inner in body.node:
            inner.name = names.get(inner.output[0], inner.name) if inner.output else inner.name
            rename_reads(inner, names)
            for index, name in enumerate(inner.output):
                inner.output[index] = names.get(name, name)
            scope_names(inner, unique)


def remove_unused(graph: GraphProto) -> None:
    """Drop nodes and initialisers that no graph output depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed |= reads(node)
            kept.append(node)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(reversed(kept))
    unused = [index for index, tensor in enumerate(graph.initializer) if tensor.name not in needed]
    for index in reversed(unused):  # one by one: rebuilding the list would copy every weight
        del graph.initializer[index]
