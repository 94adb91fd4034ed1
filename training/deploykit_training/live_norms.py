"""Batch norms that use the statistics of the batch while a training begins, on top of folded, rounded weights.

A folded layer gives y = s (W x + b) + t, with s and t from the running statistics. A batch norm does not see a scale
and a shift of its input, so that normalising y by its own batch is what the batch norm of training mode makes of the
layer with the rounded weight; its epsilon is scaled by s squared. Running statistics move on as PyTorch moves them.
Layers whose batch norm was not folded into them keep their running statistics.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from deploykit.capture.derivation import Derived, Own
from deploykit.capture.fold import CONVOLUTIONS, TRANSPOSED, folded_bias, scale_of
from deploykit_calibration.op_kinds import bias_argument, weight_argument

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_LAYERS = (*CONVOLUTIONS, *TRANSPOSED, torch.ops.aten.linear.default)


@dataclass(frozen=True)
class LiveNorm:
    """A batch norm that was folded into a layer.

    Attributes:
        layer: name of the layer's node.
        mean, var: names of the running statistics in the model.
        weight, bias: names of scale and shift; None where there is none.
        eps: what the batch norm adds to a variance.
    """

    layer: str
    mean: str
    var: str
    weight: str | None
    bias: str | None
    eps: float

    def tensors(self, module: nn.Module) -> list[Any]:
        """What `normalised` takes behind y: the model's own tensors, and the momentum."""
        names = (self.mean, self.var, self.weight, self.bias)
        found = [None if name is None else operator.attrgetter(name)(module) for name in names]
        norm = module.get_submodule(self.mean.rpartition(".")[0])
        count, momentum = getattr(norm, "num_batches_tracked", None), getattr(norm, "momentum", 0.1)
        return [*found, count, momentum]


def norms_of(captured: CapturedModel) -> tuple[LiveNorm, ...]:
    """The batch norms that were folded into the layers of a model."""
    layers = [node for node in captured.graph_module.graph.nodes if node.target in _LAYERS]
    found = (_norm_of(node, captured) for node in layers)
    return tuple(norm for norm in found if norm is not None)


def _norm_of(layer: Node, captured: CapturedModel) -> LiveNorm | None:
    bias = bias_argument(layer)
    if not isinstance(bias, Node) or not isinstance(weight_argument(layer), Node):
        return None
    derivation = captured.derivations.get(str(bias.target))
    function = derivation.function if isinstance(derivation, Derived) else None
    if not isinstance(derivation, Derived) or not isinstance(function, partial) or function.func is not folded_bias:
        return None
    _, var, weight, mean, shift = derivation.operands
    if not all(isinstance(each, Own) for each in (mean, var)):
        return None
    if not all(each is None or isinstance(each, Own) for each in (weight, shift)):
        return None  # computed from others: a parametrised scale keeps its running statistics
    names = (None if weight is None else weight.name, None if shift is None else shift.name)
    return LiveNorm(layer.name, mean.name, var.name, *names, float(function.args[0]))


def with_live_norms(graph_module: GraphModule, norms: tuple[LiveNorm, ...]) -> GraphModule:
    """A copy of a live graph that normalises behind these layers; it takes six more inputs for each."""
    graph, copies = Graph(), dict[Node, Node]()
    nodes = list(graph_module.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    inputs = {norm.layer: [graph.placeholder(f"norm_{norm.layer}_{i}") for i in range(6)] for norm in norms}
    eps = {norm.layer: norm.eps for norm in norms}
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.name in inputs:
                copies[node] = graph.call_function(normalised, (copies[node], *inputs[node.name], eps[node.name]))
    return GraphModule(graph_module, graph, class_name="LiveNormGraphModule")


def normalised(
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    count: Tensor | None,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """The output of a folded layer as its batch norm gives it in training mode; running statistics move on.

    Args:
        y: float, shape (batch, channels, ...), at least two values for each channel.
        mean, var: running statistics, shape (channels,); changed in place.
        weight, bias: the weight and bias of the batch norm, shape (channels,), or None.
        count: batches that were seen; changed in place.
        momentum: None is the average of all batches.
    """
    y, axes = y.float(), [axis for axis in range(y.dim()) if axis != 1]
    shape = [1, -1, *[1] * (y.dim() - 2)]
    variance, average = torch.var_mean(y, axes, correction=0)
    scale = scale_of(var, None if weight is None else weight.detach(), eps).float()
    tiny = torch.finfo(torch.float32).tiny
    factor = torch.rsqrt(variance + (eps * scale.square()).clamp_min(tiny)) * scale.sign()
    result = (y - average.view(shape)) * (factor if weight is None else factor * weight).view(shape)
    with torch.no_grad():
        _move_on(mean, var, count, momentum, _raw(average, variance, scale, mean, bias, y.numel() // y.shape[1]))
    return result if bias is None else result + bias.view(shape)


def _raw(
    average: Tensor, variance: Tensor, scale: Tensor, mean: Tensor, bias: Tensor | None, rows: int
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance in front of the batch norm; a channel of scale 0 keeps what it has."""
    shift = (0.0 if bias is None else bias) - mean * scale
    dead, divisor = scale == 0, scale.masked_fill(scale == 0, 1.0)
    raw = torch.where(dead, mean, (average - shift) / divisor)
    spread = torch.where(dead, torch.ones_like(scale), variance * (rows / max(1, rows - 1)) / divisor.square())
    return raw, spread


def _move_on(
    mean: Tensor, var: Tensor, count: Tensor | None, momentum: float | None, seen: tuple[Tensor, Tensor]
) -> None:
    if count is not None:
        count += 1
    share = momentum if momentum is not None else 1.0 / float(count if count is not None else 1)
    mean.lerp_(seen[0], share)
    var.lerp_(seen[1], share)
