"""`unroll_recurrent`: LSTM and GRU as plain matrix products, one set per step, for targets without such an op."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from deploykit.capture.check import require_parity
from deploykit.capture.editor import Call, Editor, call_name
from deploykit.capture.fingerprint import constant, fingerprint
from deploykit.capture.model import CapturedModel
from deploykit.capture.normalise import normalise
from deploykit.capture.origins import origin_of
from deploykit.capture.recurrent_cells import RECURRENT, length_of, unroll
from deploykit.contract.quiet import quiet

OF_THIS_GRAPH = "_step"
"""Ends the names of nodes that mean something in this graph alone: their statistics serve no other form of a model."""
_KNOWN_AS = "known_as"


MOST_STEPS = 256
"""Steps of all recurrent layers of a model, in both directions, up to which they are written out for int8 products."""


def steps_of(node: Call) -> int:
    """How many products of a state a recurrent operator stands for."""
    layers, bidirectional = node.args[4], node.args[7]
    steps: int = length_of(node) * layers * (2 if bidirectional else 1)
    return steps


def unroll_recurrent(captured: CapturedModel, layers: Collection[str] | None = None) -> CapturedModel:
    """Unroll LSTMs, GRUs and RNNs over their (static) length; other models come back as they are.

    Args:
        layers: names of those to unroll; None for every one.
    Returns:
        a capture of the same model with a graph, origins and fingerprint of its own, checked against the first.

    Raises:
        CaptureError: the unrolled graph differs.
    """
    nodes = [node for node in captured.graph_module.graph.nodes if node.target in RECURRENT]
    chosen = frozenset(node.name for node in nodes if layers is None or node.name in layers)
    if not chosen:
        return captured
    with quiet(), torch.no_grad():
        editor = _unrolled(captured, chosen)
        module = _with_known_names(normalise(editor), captured)
        derivations = editor.derivations
        reference = captured.graph_module(*captured.example_inputs)
        results = module(*captured.example_inputs)
        require_parity(reference, results, lambda: _unrolled(captured, chosen), (), captured.example_inputs)
    origins = {n.name: origin_of(n) for n in module.graph.nodes if n.op == "call_function"}
    digest = fingerprint(module, captured.inputs)
    return replace(captured, graph_module=module, origins=origins, fingerprint=digest, derivations=derivations)


def _unrolled(captured: CapturedModel, layers: Collection[str]) -> Editor:
    graph = torch.fx.Graph()
    env: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in captured.graph_module.graph.nodes:
        env[node] = graph.node_copy(node, lambda n: env[n])
        env[node].meta[_KNOWN_AS] = node.name
    names = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    constants = {name: constant(captured.graph_module, name) for name in names}
    editor = Editor(graph, constants, captured.derivations)
    editor.trainable = captured.trainable
    for node in editor.calls(*RECURRENT):
        layer = node.meta[_KNOWN_AS]
        if layer in layers:
            unroll(editor, node)
            _name_steps(editor, layer)
    return editor


def _name_steps(editor: Editor, layer: str) -> None:
    """What a layer became is named for it: the same, whichever others are unrolled, so that statistics serve any."""
    counts = Counter[str]()
    for node in editor.calls():
        if _KNOWN_AS not in node.meta:
            name = f"{layer}_{call_name(node.target) or node.target.__name__}"
            node.meta[_KNOWN_AS] = f"{name}_{counts[name]}"
            counts[name] += 1


def _with_known_names(module: torch.fx.GraphModule, captured: CapturedModel) -> torch.fx.GraphModule:
    """The same graph; what has a name keeps it, and nothing else has it: statistics are by name.

    What normalising made anew is named for what it reads and how, where that is told by names and numbers.
    """
    taken = {str(node.meta[_KNOWN_AS]) for node in module.graph.nodes if _KNOWN_AS in node.meta}
    taken |= {node.name for node in captured.graph_module.graph.nodes}
    graph, copies = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    for node in module.graph.nodes:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        name = node.meta.pop(_KNOWN_AS, None)
        if name is None and node.op == "call_function":
            name = _told_by(node.target, args, kwargs)
            name = f"{node.name}{OF_THIS_GRAPH}" if name is None or name in taken else name
            taken.add(name)
        copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=name or node.name)
        copies[node].meta = node.meta
    return torch.fx.GraphModule(module, graph)


def _told_by(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """A name that stands for one value, such as `lstm_add_3_slice_1_0_64`; None where more than numbers tell it."""
    source, *rest = args or (None,)
    known = isinstance(source, torch.fx.Node) and source.op != "get_attr" and not source.name.endswith(OF_THIS_GRAPH)
    if kwargs or not known or not all(isinstance(each, int | list) for each in rest):
        return None
    told = "_".join(re.findall(r"\w+", str(rest).replace("-", "m")))
    return f"{source.name}_{call_name(target) or target.__name__}_{told}" if "Node" not in told else None
