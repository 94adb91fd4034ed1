"""The placed graph as a live function of the model's own parameters.

Every constant of a placed graph follows from the model's tensors: capture recorded how they fold, placement how folded
values are rounded. Here these become inputs of the graph that are computed anew for each forward pass, differentiably;
activations are rounded with straight-through gradients. What follows from nothing of the model's stays a constant.
Statistics of batch norms are read and not written, unless `live_norms` is asked for them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from deploykit.capture.calls import stored
from deploykit.capture.derivation import evaluate
from deploykit.contract.errors import ConversionError
from deploykit_calibration.op_kinds import data_arguments
from deploykit_calibration.roundings import ROUNDING, BiasRounding, WeightRounding
from deploykit_training import straight_through
from deploykit_training.live_norms import LiveNorm, norms_of, with_live_norms

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.weights import WeightQuant

_OPS = torch.ops.quantized_decomposed
_QUANTIZE, _DEQUANTIZE = _OPS.quantize_per_tensor.default, _OPS.dequantize_per_tensor.default
Own = Callable[[str], Tensor]


class LiveGraph:
    """A placed graph whose weights are given anew for each run.

    Args:
        prepared: what was placed, from a capture whose derivations are known.

    Raises:
        ConversionError: a stored tensor is rounded in a way that says nothing of how it follows from the parameters.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self._derivations = prepared.captured.derivations
        self._live: list[tuple[str, Any]] = []
        self.graph_module = self._build(prepared.graph_module, prepared.placed.run_time)
        self._modules: dict[torch.device, GraphModule] = {torch.device("cpu"): self.graph_module}
        self._normed: dict[torch.device, GraphModule] = {}

    def run(self, own: Own, inputs: Sequence[Tensor], *, norms_in: nn.Module | None = None) -> tuple[Tensor, ...]:
        """Run the graph with the weights of the moment.

        Args:
            own: gives a parameter or buffer of the model by name, float32.
            inputs: flat, in the order of the captured inputs.
            norms_in: the module whose batch norms use the statistics of the batch; None leaves all frozen.
        Returns:
            The outputs in the graph's order, with gradients where autograd records.
        """
        device = inputs[0].device
        with torch.autocast(device.type, enabled=False):
            values = self.values(lambda name: own(name).to(device), device)
        if norms_in is not None and self.norms:
            further = [each for norm in self.norms for each in norm.tensors(norms_in)]
            return tuple(self._with_norms(device)(*inputs, *values, *further))
        result: tuple[Tensor, ...] = self._on(device)(*inputs, *values)
        return result

    @cached_property
    def norms(self) -> tuple[LiveNorm, ...]:
        """Batch norms that can use the statistics of the batch."""
        return norms_of(self.prepared.captured)

    def _with_norms(self, device: torch.device) -> GraphModule:
        if device not in self._normed:
            self._normed[device] = with_live_norms(self._on(device), self.norms)
        return self._normed[device]

    def values(self, own: Own, device: torch.device) -> list[Tensor]:
        """Every live constant, from the model's tensors of the moment."""
        known: dict[int, Any] = {}
        floats = {name: self._constant(name, own, known, device).to(device) for name in self._names()}
        with torch.no_grad():  # scales are chosen on the CPU, in float64, as placement does
            plain = {name: value.detach().cpu() for name, value in floats.items()}
        quants: dict[WeightRounding, WeightQuant] = {}
        return [self._rounded(rule, floats, plain, quants) for _, rule in self._live]

    # Values.

    def _names(self) -> list[str]:
        """The captured model's constants that live values are made of."""
        return list(dict.fromkeys(name for _, rule in self._live for name in _read(rule)))

    def _constant(self, name: str, own: Own, known: dict[int, Any], device: torch.device) -> Tensor:
        if name in self._derivations:
            found: Tensor = evaluate(self._derivations[name], own, known, device)
            return found
        literal = stored(self.prepared.captured.graph_module, name)
        assert isinstance(literal, Tensor)
        return literal.detach()

    def _rounded(
        self,
        rule: Any,
        floats: Mapping[str, Tensor],
        plain: Mapping[str, Tensor],
        quants: dict[WeightRounding, WeightQuant],
    ) -> Tensor:
        if isinstance(rule, str):
            return floats[rule]
        weight = rule.weight if isinstance(rule, BiasRounding) else rule
        with torch.no_grad():
            if weight not in quants:
                quants[weight] = weight.quant(plain.__getitem__, self.prepared.scheme)
            quant = quants[weight]
            if isinstance(rule, BiasRounding):
                value, rounded = floats[rule.bias], rule.rounded(plain.__getitem__, quant)
            elif rule.at_run_time:
                value, rounded = floats[rule.weight], quant.rounded(plain[rule.weight])
            else:
                value, rounded = floats[rule.weight], None
        if rounded is None:
            return straight_through.quantize_weight(value, _moved(quant, value))
        return straight_through.through(value, rounded.to(value.device))

    # The graph.

    def _build(self, placed: GraphModule, run_time: frozenset[str]) -> GraphModule:
        graph, copies = Graph(), dict[Node, Any]()
        buffers: dict[str, Any] = {}
        nodes = list(placed.graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        for node in nodes:
            rule = self._rule(node)
            if rule is not None:
                copies[node] = graph.placeholder(f"live_{node.name}")
                self._live.append((node.name, rule))
        for node in nodes:
            if node not in copies:
                copies[node] = self._copy(graph, placed, node, copies, buffers, run_time)
        for node in reversed(graph.nodes):
            if node.op in ("get_attr", "call_function") and not node.users:
                graph.erase_node(node)
        used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        kept = {name: value for name, value in buffers.items() if name in used}
        module = GraphModule(kept, graph, class_name="TrainedGraphModule")
        module.graph.lint()
        return module

    def _rule(self, node: Node) -> Any:
        """How a node's value follows from the model; the name of a constant that is not rounded, None for others."""
        if ROUNDING in node.meta:
            rule = node.meta[ROUNDING]
            return rule if any(name in self._derivations for name in _read(rule)) else None
        if node.op == "get_attr" and str(node.target) in self._derivations:
            return str(node.target)
        return None

    def _copy(
        self,
        graph: Graph,
        placed: GraphModule,
        node: Node,
        copies: Mapping[Node, Any],
        buffers: dict[str, Any],
        run_time: frozenset[str],
    ) -> Any:
        if node.op == "get_attr":
            value = stored(placed, str(node.target))
            buffers[str(node.target)] = value.detach() if isinstance(value, Tensor) else value
            return graph.node_copy(node, copies.__getitem__)
        if node.target is _QUANTIZE and all(user.target is _DEQUANTIZE for user in node.users):
            return copies[node.args[0]]  # type: ignore[index]
        if node.target is _DEQUANTIZE and getattr(node.args[0], "target", None) is _QUANTIZE:
            return _rounded_call(graph, node, copies)
        copy = graph.node_copy(node, copies.__getitem__)
        if node.name in run_time:
            (source,) = data_arguments(copy)
            with graph.inserting_before(copy):
                rounded = graph.call_function(straight_through.rows_through, (source,))
            copy.replace_input_with(source, rounded)
        return copy

    def _on(self, device: torch.device) -> GraphModule:
        """The graph for a device: constants are moved there, and tensors are made there."""
        if device not in self._modules:
            graph, copies = Graph(), dict[Node, Node]()
            for node in self.graph_module.graph.nodes:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                if copies[node].kwargs.get("device") is not None:
                    copies[node].update_kwarg("device", device)
            names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
            held = {name: stored(self.graph_module, name) for name in names}
            moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in held.items()}
            self._modules[device] = GraphModule(moved, graph, class_name="TrainedGraphModule")
        return self._modules[device]


def _rounded_call(graph: Graph, node: Node, copies: Mapping[Node, Any]) -> Node:
    """One straight-through call in place of a quantize and the dequantize behind it."""
    pair: Any = node.args[0]
    source, scale, zero_point, low, high, dtype = pair.args
    if dtype.is_floating_point:
        return graph.call_function(straight_through.float8_through, (copies[source], scale, high))
    args = (copies[source], scale, low - zero_point, high - zero_point)
    made = graph.call_function(straight_through.fake_quantize, args)
    made.meta["rounds"] = str(source.name)
    return made


def _read(rule: Any) -> tuple[str, ...]:
    """The captured model's constants that a rule reads."""
    if isinstance(rule, str):
        return (rule,)
    if isinstance(rule, BiasRounding):
        return (rule.bias, *_read(rule.weight))
    return (rule.weight,) if rule.bias is None else (rule.weight, rule.bias)


def _moved(quant: WeightQuant, like: Tensor) -> WeightQuant:
    """The same on the device of a weight."""
    if like.device.type == "cpu":
        return quant
    return replace(quant, scales=quant.scales.to(like.device), zero_points=quant.zero_points.to(like.device))


def own_of(module: torch.nn.Module) -> Own:
    """A module's parameters and buffers by name, as they are when they are asked for."""

    def own(name: str) -> Tensor:
        found = operator.attrgetter(name)(module)
        if type(found).__name__ == "DTensor":
            raise ConversionError(
                f"{name} is sharded: training for a target reads whole parameters",
                hint="shard the root module alone (fully_shard(model)), whose parameters are whole in forward, or train"
                " with DistributedDataParallel",
            )
        assert isinstance(found, Tensor)
        return found

    return own
