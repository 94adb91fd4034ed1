"""Rank layers by the output noise that quantizing them causes, with a few backward passes.

For every integer op, delta is what rounding its inputs, weights and result does to its result on float inputs, and g
is the gradient of a random projection of the model's outputs. The mean of dot(g, delta)^2 over projections is, to
first order, the op's share of the output noise, and noise powers of different ops add. Summing the squares of g * delta
instead takes roundings for independent, and misses weight errors that a mean over positions does not average away (rank
correlation 0.5 instead of 0.9 on a small transformer). Either ranks far better than the local SQNR of a layer does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from deploykit_calibration.simulate import evaluate, fake_quantize, fuse

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.placement import QuantizedGraph


@dataclass(frozen=True)
class LayerSensitivity:
    """How much one layer is to blame.

    Attributes:
        name: node name in the captured graph.
        module_path: dotted path of the module, "" for the root.
        kind: such as `conv`.
        score: estimated noise power at the outputs, in their squared unit.
        share: of the sum of all scores, 0 to 1.
    """

    name: str
    module_path: str
    kind: str
    score: float
    share: float


def sensitivity(
    captured: CapturedModel,
    quantized: QuantizedGraph,
    samples: Iterable[Mapping[str, Tensor]],
    *,
    projections: int = 8,
    seed: int = 0,
) -> tuple[LayerSensitivity, ...]:
    """Rank the integer layers of a placement.

    Args:
        captured: the float model.
        quantized: what `place` made of it.
        samples: feeds by input name; one to four batches are enough.
        projections: random projections (backward passes) for each sample; their number times that of the samples
            makes the estimate steady (relative error about sqrt(2 / n)).
        seed: of the projections.
    Returns:
        Every int8 layer, the most harmful first.
    """
    layers = {layer.name: layer for layer in quantized.layers}
    probe = _Probe(captured.graph_module, quantized, projections)
    generator = torch.Generator().manual_seed(seed)
    for feeds in samples:
        probe.add([feeds[spec.name] for spec in captured.inputs], generator)
    total = sum(probe.scores.values()) or 1.0  # no noise at all: every share is 0
    ranked = sorted(probe.scores.items(), key=lambda item: -item[1])
    return tuple(
        LayerSensitivity(name, layers[name].module_path, layers[name].kind, score, score / total)
        for name, score in ranked
    )


def exclusions(ranking: Sequence[LayerSensitivity], gain_db: float, *, limit: int = 8) -> tuple[str, ...]:
    """The fewest layers to leave in float for a wanted gain, as patterns for `exclude`.

    Args:
        ranking: from `sensitivity`.
        gain_db: wanted improvement of the outputs' SQNR.
        limit: most layers to name.
    Returns:
        Module paths (node names for layers of the root module), most harmful first; `limit` of them where even
        that is not predicted to be enough.
    """
    chosen: dict[str, None] = {}
    share = 0.0
    for layer in ranking:
        if len(chosen) >= limit or predicted_gain_db(share) >= gain_db:
            break
        chosen[layer.module_path or layer.name] = None
        share += layer.share
    return tuple(chosen)


def predicted_gain_db(share: float) -> float:
    """SQNR gained by removing a share of the noise power."""
    return math.inf if share >= 1.0 else -10.0 * math.log10(1.0 - share)


class _Probe:
    """Runs the float graph with gradients and measures at every integer layer.

    Every rounding is counted once, so that the scores add up to the whole: that of a tensor with the layer that
    writes it in integers, else with the integer layers that read it.
    """

    def __init__(self, module: GraphModule, quantized: QuantizedGraph, projections: int) -> None:
        self._module, self._projections = module, projections
        self._simulated = fuse(quantized.graph_module, quantized.run_time)
        self._nodes = {node.name: node for node in self._simulated.graph.nodes}
        self.scores = {layer.name: 0.0 for layer in quantized.layers if layer.precision == "int8"}
        self._writers = {
            tensor: writer for tensor, writer in quantized.integer_outputs.items() if writer in self.scores
        }

    def add(self, inputs: Sequence[Tensor], generator: torch.Generator) -> None:
        """Add the scores of one sample."""
        with torch.enable_grad():
            outputs = [tensor for tensor in self._forward(inputs) if tensor.requires_grad]
            for remaining in range(self._projections - 1, -1, -1):
                if outputs:
                    noise = [torch.randn(tensor.shape, generator=generator) for tensor in outputs]
                    torch.autograd.backward(outputs, noise, retain_graph=remaining > 0)

    def _forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        environment: dict[Node, Any] = {}
        by_name: dict[str, Any] = {}
        remaining = iter(inputs)
        for node in self._module.graph.nodes:
            if node.op == "output":
                return [environment[source] for source in node.args[0]]
            value = next(remaining) if node.op == "placeholder" else evaluate(self._module, node, environment)
            if node.name in self.scores:
                value = self._watch(node.name, value, self._read_error(node.name, value, by_name))
            if node.name in self._writers:
                value = self._watch(self._writers[node.name], value, self._write_error(node.name, by_name))
            environment[node] = by_name[node.name] = value
        raise AssertionError("a graph ends with its output node")

    def _read_error(self, name: str, value: Tensor, by_name: Mapping[str, Any]) -> Tensor:
        """What rounding its weights, and the inputs that no layer writes, does to a layer's result."""
        with torch.no_grad():
            shift: Tensor = self._compute(self._nodes[name], by_name, frozenset(self._writers)) - value
            return shift

    def _write_error(self, name: str, by_name: Mapping[str, Any]) -> Tensor:
        """The rounding of a layer's result when its inputs are rounded too: none where both have one scale."""
        tensor, op = self._nodes[name], self._nodes[self._writers[name]]
        rounding = next(user for user in tensor.users if user.target is fake_quantize)
        with torch.no_grad():
            result = self._compute(op, by_name, frozenset())
            if tensor is not op:
                arguments = (result if arg is op else arg for arg in tensor.args)
                result = tensor.target(*arguments, **tensor.kwargs)
            error: Tensor = fake_quantize(result, *rounding.args[1:]) - result
            return error

    def _compute(self, op: Node, by_name: Mapping[str, Any], exact: frozenset[str]) -> Any:
        """An op on float inputs rounded as in the simulated graph, except for the tensors in `exact`."""
        operands = {source: self._operand(source, by_name, exact) for source in op.all_input_nodes}
        args, kwargs = map_arg(op.args, operands.__getitem__), map_arg(op.kwargs, operands.__getitem__)
        return op.target(*args, **kwargs)  # type: ignore[operator]

    def _operand(self, node: Node, by_name: Mapping[str, Any], exact: frozenset[str]) -> Any:
        if node.op == "get_attr":
            return evaluate(self._simulated, node, {})
        if node.target is not fake_quantize:
            return by_name[node.name]
        source, scale, low, high = node.args
        assert isinstance(source, Node)
        value = by_name[source.name]
        return value if source.name in exact else fake_quantize(value, scale, low, high)

    def _watch(self, name: str, value: Tensor, error: Tensor) -> Tensor:
        """Add dot(gradient, error)^2 to the layer's score when the gradient comes by."""
        if not value.requires_grad:
            value = value.detach().requires_grad_()

        def hook(gradient: Tensor) -> None:
            self.scores[name] += float((gradient * error).double().sum()) ** 2 / self._projections

        value.register_hook(hook)
        return value
