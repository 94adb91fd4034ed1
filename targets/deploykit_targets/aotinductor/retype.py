"""A captured graph in float16 or bfloat16: every tensor but inputs, outputs and what is kept."""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from deploykit.capture.calls import attribute

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_CAST = torch.ops.aten._to_copy.default


def retyped(captured: CapturedModel, dtype: torch.dtype, kept: Collection[str] = ()) -> GraphModule:
    """A copy of the captured graph that computes in `dtype`; the graph itself where that is float32.

    Args:
        captured: float32; it is left as it is.
        dtype: `float16`, `bfloat16` or `float32`.
        kept: names of the operators that stay float32: casts are put around them, their constants stay as they are.
    """
    if dtype is torch.float32:
        return captured.graph_module
    module = copy.deepcopy(captured.graph_module)
    floats = [node for node in module.graph.nodes if node.op != "output" and _is_float(node)]
    wide = {node for node in floats if node.op == "placeholder" or node.name in kept}
    for node in floats:
        if node.op == "get_attr":
            _narrow(module, node, kept, dtype)
        else:
            _cast_behind(node, node in wide, kept, dtype)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is not _CAST and node.name not in kept:
            node.args = _replaced(node.args, dtype)
            node.kwargs = _replaced(node.kwargs, dtype)
    module.graph.lint()
    module.recompile()
    return module


def _replaced(arguments: Any, dtype: torch.dtype) -> Any:
    return map_aggregate(arguments, lambda value: dtype if value is torch.float32 else value)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    if node.op == "get_attr":
        value = attribute(node)
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32


def _cast_behind(node: Node, wide: bool, kept: Collection[str], dtype: torch.dtype) -> None:
    """A cast for those readers that do not compute in the type of the value; outputs are float32."""
    others = [user for user in node.users if (user.op == "output" or user.name in kept) is not wide]
    if not others:
        return
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(_CAST, (node,), {"dtype": dtype if wide else torch.float32})
    for user in others:
        user.replace_input_with(node, cast)


def _narrow(module: GraphModule, node: Node, kept: Collection[str], dtype: torch.dtype) -> None:
    """Store a constant in `dtype` for the readers that compute in it, and as it is for the others."""
    narrow = [user for user in node.users if user.op != "output" and user.name not in kept]
    if not narrow:
        return
    limit = torch.finfo(dtype)
    value = attribute(node).detach().clamp(limit.min, limit.max).to(dtype)  # a mask's -1e30 still masks
    name = f"{str(node.target).replace('.', '_')}_{str(dtype).removeprefix('torch.')}"
    module.register_buffer(name, value)
    with node.graph.inserting_after(node):
        copied = node.graph.get_attr(name)
    for user in narrow:
        user.replace_input_with(node, copied)
    if not node.users:
        module.graph.erase_node(node)
        *path, last = str(node.target).split(".")
        delattr(reduce(getattr, path, module), last)
