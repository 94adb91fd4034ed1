"""What layers of a captured graph must move, for the roofline of `deploykit.plugin.estimate`.

Operators that a placement does not report (activations, reshapes, norms) belong to the layer in front of them, or
behind them at the start, and what passes inside such a group costs nothing. An addition is fused to the last of the
layers whose results it reads: that result never exists as a tensor, and the addition reads its other operand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch.fx import Node

from deploykit.capture import CapturedModel
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.op_kinds import shape_of
from deploykit_calibration.plan import is_layer

_ELEMENTWISE = frozenset({"add", "sub", "mul"})
Owners = Mapping[Node, Node]


def traffic_of(captured: CapturedModel) -> dict[str, tuple[int, int, int]]:
    """Layer name to what `manifest.Facts.traffic` says: elements read, elements written, bytes of the network."""
    view = GraphView.of(captured)
    owners = _owners(view)
    fused = dict(_fused(view))
    found = {layer: [0, 0, 0] for layer in dict.fromkeys(owners.values())}
    for tensor in view.order:
        if tensor.op not in ("placeholder", "call_function"):
            continue
        own = owners.get(tensor)
        readers = dict.fromkeys(owners[user] for user in tensor.users if user in owners and fused.get(tensor) != user)
        if tensor.op == "placeholder":
            for reader in list(readers)[:1]:  # whoever comes later may find it in a cache
                found[reader][2] += _bytes(tensor)
        elif own is not None:
            _share_out(found, tensor, own, [reader for reader in readers if reader is not own])
    return {layer.name: (read, written, network) for layer, (read, written, network) in found.items()}


def _share_out(found: dict[Node, list[int]], tensor: Node, own: Node, readers: list[Node]) -> None:
    """Charge one tensor to the group that writes it and to those that read it."""
    if any(user.op == "output" for user in tensor.users):
        found[own][2] += _bytes(tensor)
    elif readers:
        found[own][1] += _elements(tensor)
    for reader in readers:
        found[reader][0] += _elements(tensor)


def _owners(view: GraphView) -> dict[Node, Node]:
    """Every operator that computes -> the layer whose group it is in."""
    nodes = [node for node in view.order if node.op == "call_function"]
    found: dict[Node, Node] = {}
    for node in nodes:
        before = next((found[source] for source in node.all_input_nodes if source in found), None)
        owner = node if is_layer(view, node) else before
        if owner is not None:
            found[node] = owner
    for node in reversed(nodes):
        after = next((found[user] for user in node.users if user in found), None)
        if node not in found and after is not None:
            found[node] = after
    return found


def _fused(view: GraphView) -> list[tuple[Node, Node]]:
    """(tensor, addition that is computed with it) of every addition of two tensors that can be fused."""
    found = []
    for node in view.ops():
        if view.kinds[node] not in _ELEMENTWISE or not is_layer(view, node):
            continue
        hosts = [source for source in node.all_input_nodes if source.op == "call_function" and len(source.users) == 1]
        if hosts:
            found.append((max(hosts, key=view.order.__getitem__), node))
    return found


def _elements(node: Node) -> int:
    return math.prod(shape_of(node)) if hasattr(node.meta.get("val"), "shape") else 0


def _bytes(node: Node) -> int:
    return _elements(node) * node.meta["val"].element_size() if hasattr(node.meta.get("val"), "shape") else 0
