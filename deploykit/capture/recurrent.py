"""`unroll_recurrent`: LSTM and GRU as plain matrix products, one set per step, for targets without such an op."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from deploykit.capture.check import require_parity
from deploykit.capture.editor import Editor
from deploykit.capture.fingerprint import constant, fingerprint
from deploykit.capture.model import CapturedModel
from deploykit.capture.normalise import normalise
from deploykit.capture.origins import origin_of
from deploykit.capture.recurrent_cells import RECURRENT, unroll
from deploykit.contract.quiet import quiet

_KNOWN_AS = "known_as"


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
        if node.meta[_KNOWN_AS] in layers:
            unroll(editor, node)
    return editor


def _with_known_names(module: torch.fx.GraphModule, captured: CapturedModel) -> torch.fx.GraphModule:
    """The same graph; what the captured one had keeps its name, and nothing else has it: statistics are by name."""
    taken = {node.name for node in captured.graph_module.graph.nodes}
    graph, copies = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    for node in module.graph.nodes:
        name = node.meta.pop(_KNOWN_AS, None) or (f"{node.name}_step" if node.name in taken else node.name)
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=name)
        copies[node].meta = node.meta
    return torch.fx.GraphModule(module, graph)
