"""A captured graph in float16 or bfloat16: every tensor but inputs and outputs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_CAST = torch.ops.aten._to_copy.default


def retyped(captured: CapturedModel, dtype: torch.dtype) -> GraphModule:
    """A copy of the captured graph that computes in `dtype`; the graph itself where that is float32.

    Args:
        captured: float32; it is left as it is.
        dtype: `float16`, `bfloat16` or `float32`.
    """
    if dtype is torch.float32:
        return captured.graph_module
    module = copy.deepcopy(captured.graph_module)
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            _cast_behind(node, dtype)
        elif node.op == "get_attr":
            _narrow(module, str(node.target), dtype)
        elif node.op == "call_function" and node.target is not _CAST:
            node.args = _replaced(node.args, dtype)
            node.kwargs = _replaced(node.kwargs, dtype)
        elif node.op == "output":
            _cast_outputs(node, captured)
    module.graph.lint()
    module.recompile()
    return module


def _replaced(arguments: Any, dtype: torch.dtype) -> Any:
    return map_aggregate(arguments, lambda value: dtype if value is torch.float32 else value)


def _cast_behind(node: Node, dtype: torch.dtype) -> None:
    if node.meta["val"].dtype is not torch.float32:
        return
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(_CAST, (node,), {"dtype": dtype})
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)


def _cast_outputs(node: Node, captured: CapturedModel) -> None:
    results = []
    for value, spec in zip(node.args[0], captured.outputs, strict=True):  # type: ignore[arg-type]
        if spec.dtype == "float32":
            with node.graph.inserting_before(node):
                results.append(node.graph.call_function(_CAST, (value,), {"dtype": torch.float32}))
        else:
            results.append(value)
    node.args = (tuple(results),)


def _narrow(module: GraphModule, name: str, dtype: torch.dtype) -> None:
    owner: Any = module
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    value = getattr(owner, last)
    if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
        limit = torch.finfo(dtype)
        narrow = value.detach().clamp(limit.min, limit.max).to(dtype)  # a mask's -1e30 still masks
        if isinstance(value, torch.nn.Parameter):
            setattr(owner, last, torch.nn.Parameter(narrow, requires_grad=False))
        else:
            setattr(owner, last, narrow)
