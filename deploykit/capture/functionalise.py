"""In-place ops become functional ones (`relu_` -> `relu`), where no alias of the written tensor is read afterwards.

That is nearly every in-place op of real models, and costs nothing. A write through a view that is seen elsewhere
(`y[:, 0] = 3`) needs PyTorch's full functionalisation: `is_simple` says which case a program is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from deploykit.capture.editor import Call, Editor

_SAME_TENSOR_IN_EVAL = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "dropout_"}


def writes_through_views(graph: fx.Graph) -> bool:
    """Whether some in-place op writes a tensor of which an alias is read later, or has no functional form."""
    alias: dict[Call, set[Call]] = {}
    order = {node: index for index, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in graph.nodes}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        written = written_argument(node)
        if written is not None:
            others = alias.get(written, {written}) - {written}
            if _functional(node.target) is None or any(last_use[other] > order[node] for other in others):
                return True
            if not isinstance(node.meta.get("val"), Tensor) or node.meta["val"].dtype != written.meta["val"].dtype:
                return True
        elif is_view(node):
            group = alias.setdefault(node, {node})
            for source in node.all_input_nodes:
                group |= alias.get(source, {source})
            for member in group:
                alias[member] = group
    return False


def functionalise(editor: Editor) -> None:
    """Replace in-place ops and send later uses of the written tensor to the result."""
    order = {node: index for index, node in enumerate(editor.graph.nodes)}
    for node in editor.calls():
        written = written_argument(node)
        if written is not None:
            node.target = _functional(node.target)
            for user in [user for user in written.users if order[user] > order[node]]:
                user.replace_input_with(written, node)


def written_argument(node: Call) -> Call | None:
    """The tensor that an in-place call writes; None for a functional call."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value: Any = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            return value if isinstance(value, fx.Node) else None
    return None


def _functional(target: Any) -> Any:
    """`aten.relu_.default` -> `aten.relu.default`; None where there is no such op."""
    name, overload = target._schema.name.split("::")[1], target._overloadname
    name = name.strip("_").removeprefix("i") if name.startswith("__i") else name.removesuffix("_")
    packet = getattr(torch.ops.aten, name, None)
    functional = getattr(packet, overload, None) if packet is not None else None
    return functional if functional is not None and not functional._schema.is_mutable else None


def is_view(node: Call) -> bool:
    """Whether a call's result may share memory with its first input."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # getitem of a list of views
    schema = node.target._schema
    return schema.name.split("::")[1] in _SAME_TENSOR_IN_EVAL or any(r.alias_info is not None for r in schema.returns)
