"""A captured graph, float or with q/dq nodes, as the exported program that coremltools reads.

Every node carries the name it has in the captured graph through PyTorch's export (`meta["custom"]`) and through
coremltools' passes (the debug handle of a scope), so that each op of the ML Program can be told apart.

LSTMs stay whole: coremltools has a native layer for them. GRU and RNN are unrolled over their (static) length, because
its own converters of them make a loop, which only CPUs run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch._decomp import get_decompositions
from torch.fx import Graph, GraphModule, Node

from deploykit.contract.quiet import quiet
from deploykit_targets.coreml.simpler import simpler

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_KEY = "deploykit_node"
_UNROLLED = [torch.ops.aten.gru.input, torch.ops.aten.rnn_tanh.input, torch.ops.aten.rnn_relu.input]
_NARROW = (torch.int8, torch.uint8, torch.int16, torch.uint16)
HANDLE = "debug_handle"
"""Key of node metadata that coremltools keeps with the ops it makes."""


@dataclass(frozen=True, eq=False)
class Exported:
    """A program to convert.

    Attributes:
        program: in the ATen dialect; its nodes have debug handles.
        names: captured node name of each debug handle.
    """

    program: torch.export.ExportedProgram
    names: tuple[str, ...]


def exported(captured: CapturedModel, graph_module: GraphModule | None = None) -> Exported:
    """Export a captured graph for coremltools.

    Args:
        captured: gives names, example inputs and dynamic axes.
        graph_module: a q/dq copy of its graph; the float graph itself where not given.
    """
    program = captured.export_program(_tagged(graph_module or captured.graph_module))
    with quiet(), torch.no_grad():
        decompositions: dict[Any, Any] = {**get_decompositions(_UNROLLED), **simpler(program.graph)}
        program = program.run_decompositions(decompositions)
        while new := {op: form for op, form in simpler(program.graph).items() if op not in decompositions}:
            decompositions |= new
            program = program.run_decompositions(decompositions)
    _without_aliases(program.graph)
    names: dict[str, int] = {}
    for node in program.graph.nodes:
        _widen(node)
        name = node.meta.get("custom", {}).get(_KEY)
        if name is not None:
            node.meta[HANDLE] = names.setdefault(name, len(names))
    return Exported(program, tuple(names))


def _widen(node: Node) -> None:
    """Core ML's programs take integers of 32 bits alone: sessions and apps hand over narrower ones in these."""
    value = node.meta.get("val")
    if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.dtype in _NARROW:
        node.meta["val"] = value.to(torch.int32)


def _without_aliases(graph: Graph) -> None:
    """Take out what decompositions leave of views that are the tensor itself; coremltools has no word for them."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        source = node.args[0]
        if all(user.op != "output" for user in node.users):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _tagged(module: GraphModule) -> GraphModule:
    """A copy whose nodes carry their own names in metadata; parameters are shared."""
    graph, copies = Graph(), dict[Node, Node]()
    for node in module.graph.nodes:
        copy = copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "call_function":
            copy.meta["custom"] = {**_custom(node), _KEY: node.name}
    return GraphModule(module, graph)


def _custom(node: Node) -> dict[str, Any]:
    return dict(node.meta.get("custom") or {})
