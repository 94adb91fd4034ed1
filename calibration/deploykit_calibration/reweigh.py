"""The float graph with other weights: what equalisation, rounding and pruning make of a captured model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from deploykit.capture.calls import stored
from deploykit.capture.fingerprint import fingerprint
from deploykit.contract.errors import ConversionError
from deploykit_calibration.heap import trim

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel


def with_weights(captured: CapturedModel, weights: Mapping[str, Tensor]) -> CapturedModel:
    """A copy of a captured model in which some stored tensors have other values.

    Args:
        captured: it is not changed; tensors that stay are shared.
        weights: the weights, by the target of their `get_attr` node; shape and dtype are those of the old ones.
    Returns:
        The same graph, node for node, with a fingerprint of its own.
    Raises:
        ConversionError: a tensor is not stored in the model, or of another shape or dtype.
    """
    graph, copies = Graph(), dict[Node, Node]()
    for node in captured.graph_module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    old = {name: stored(captured.graph_module, name) for name in names}
    for name, weight in weights.items():
        before = old.get(name)
        if not isinstance(before, Tensor) or (before.shape, before.dtype) != (weight.shape, weight.dtype):
            raise ConversionError(f"the model stores no {name} of shape {list(weight.shape)} and type {weight.dtype}")
    module = GraphModule({**old, **weights}, graph, class_name="ReweighedGraphModule").eval()
    derivations = {name: each for name, each in captured.derivations.items() if name not in weights}
    digest = fingerprint(module, captured.inputs)
    trim()
    return replace(captured, graph_module=module, fingerprint=digest, derivations=derivations)
