"""A flat graph on its way to the converter's process: nodes as plain data, tensors beside them.

The converter exports what it gets once more, so a saved `ExportedProgram` would only cost time: a second for a
MobileNet. Nothing is pickled that could run code.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor
    from torch.fx import GraphModule

_GETITEM = "getitem"


def save(path: Path, graph_module: GraphModule, example_inputs: Sequence[Tensor], labels: Mapping[str, str]) -> None:
    """Write a graph.

    Args:
        graph_module: placeholders, get_attr, aten and quantized_decomposed calls, one output.
        example_inputs: in the order of the placeholders.
        labels: what the converter shall call what a node computes, by node name; its own name where missing.
    """
    import torch

    nodes, tensors = [], {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            tensors[str(node.target)] = operator.attrgetter(str(node.target))(graph_module).detach()
        target = _GETITEM if node.target is operator.getitem else str(node.target)
        label, trace = labels.get(node.name, node.name), node.meta.get("stack_trace", "")
        nodes.append((node.op, node.name, target, _plain(node.args), _plain(node.kwargs), label, trace))
    torch.save({"nodes": nodes, "tensors": tensors, "examples": list(example_inputs)}, path)


def load(path: Path) -> tuple[GraphModule, list[Tensor]]:
    """Read a graph; its nodes are marked so that the converter names tensors after their labels."""
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators

    found = torch.load(path, weights_only=True, mmap=True)
    graph, made = torch.fx.Graph(), dict[str, torch.fx.Node]()
    for op, name, target, args, kwargs, label, trace in found["nodes"]:
        callee = _callee(target) if op == "call_function" else target
        arguments = _restored(args, made)
        node = graph.create_node(op, callee, arguments, _restored(kwargs, made), name=name)
        # The converter names tensors after this stack; counting reads the names back from the file.
        node.meta["nn_module_stack"] = {label: ("", label)}
        if trace:
            node.meta["stack_trace"] = trace
        made[name] = node
    return torch.fx.GraphModule(found["tensors"], graph).eval(), found["examples"]


def _plain(value: Any) -> Any:
    """Arguments of a node as data: nodes and types of PyTorch become tagged pairs, containers keep their kind."""
    import torch

    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"mapping": [(key, _plain(item)) for key, item in value.items()]}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _restored(value: Any, made: Mapping[str, torch.fx.Node]) -> Any:
    import torch

    if isinstance(value, dict):
        ((tag, content),) = value.items()
        match tag:
            case "node":
                return made[content]
            case "torch":
                return getattr(torch, content)
            case "device":
                return torch.device(content)
            case _:
                return {key: _restored(item, made) for key, item in content}
    if isinstance(value, tuple):
        return tuple(_restored(item, made) for item in value)
    return [_restored(item, made) for item in value] if isinstance(value, list) else value


def _callee(target: str) -> Any:
    """The function behind such as `aten.conv2d.default`."""
    import torch

    return operator.getitem if target == _GETITEM else reduce(getattr, target.split("."), torch.ops)
