"""The placed graph as a live function of the model's own parameters.

Every constant of a placed graph follows from the model's tensors: capture recorded how they fold, placement how folded
values are rounded. Here these become inputs of the graph that the target's simulation runs, computed anew for each
forward pass, differentiably; activations are rounded with straight-through gradients. What follows from nothing of the
model's stays a constant. Statistics of batch norms are read and not written, unless `live_norms` is asked for them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from deploykit.capture.calls import stored
from deploykit.capture.derivation import evaluate, own_names
from deploykit.contract.errors import ConversionError
from deploykit.pipeline.reference import to_arrays
from deploykit_calibration.roundings import ROUNDING, BiasRounding
from deploykit_calibration.simulate import FACTORS, Factor, Key, key_of, requantize, round_half
from deploykit_calibration.weights import WeightQuant
from deploykit_training import learned, straight_through
from deploykit_training.learned import LearnedScales
from deploykit_training.live_norms import LiveNorm, norms_of, with_live_norms

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared

Own = Callable[[str], Tensor]


class LiveGraph:
    """A placed graph whose weights are given anew for each run.

    Args:
        prepared: what was placed, from a capture whose derivations are known.
        simulated: what the target computes of it, as `Target.simulate` gives it.
        learn_scales: scales of activations are parameters, too; else they are those of placement.

    Raises:
        ConversionError: a stored tensor is rounded in a way that says nothing of how it follows from the parameters.
    """

    def __init__(self, prepared: Prepared, simulated: GraphModule, *, learn_scales: bool = False) -> None:
        self.prepared = prepared
        self.scales = LearnedScales(prepared, simulated) if learn_scales else None
        self._derivations = prepared.captured.derivations
        self._live: list[tuple[str, Any, bool]] = []
        self.graph_module = self._build(simulated)
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
            values += self.scales.values(device) if self.scales is not None else []
        if norms_in is not None and self.norms:
            further = [each for norm in self.norms for each in norm.tensors(norms_in)]
            return tuple(self._with_norms(device)(*inputs, *values, *further))
        result: tuple[Tensor, ...] = self._on(device)(*inputs, *values)
        return result

    def arrays(self, own: Own, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run named arrays to named arrays, without gradients."""
        captured = self.prepared.reference
        inputs = [torch.from_numpy(feeds[spec.name]) for spec in captured.inputs]
        with torch.no_grad():
            results = self.run(own, inputs)
        return to_arrays({spec.name: x for spec, x in zip(captured.outputs, results, strict=True)})

    def kept(self, own: Own) -> Kept:
        """The graph with the parameters of the moment, whatever becomes of the model."""
        names = {name for derivation in self._derivations.values() for name in own_names(derivation)}
        return Kept(self, {name: own(name).detach().cpu().clone() for name in names})

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
        quants: dict[Any, WeightQuant | Tensor] = {}
        values = ((self._rounded(rule, floats, plain, quants), halved) for _, rule, halved in self._live)
        return [straight_through.half_through(value) if halved else value for value, halved in values]

    # Values.

    def _names(self) -> list[str]:
        """The captured model's constants that live values are made of."""
        return list(dict.fromkeys(name for _, rule, _ in self._live for name in _read(rule)))

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
        quants: dict[Any, WeightQuant | Tensor],
    ) -> Tensor:
        if isinstance(rule, str):
            return floats[rule]
        weight = rule.weight if isinstance(rule, BiasRounding) else rule
        with torch.no_grad():
            if weight not in quants:
                quants[weight] = weight.of(plain.__getitem__, self.prepared.scheme)
            quant = quants[weight]
            rounded = rule.rounded(plain.__getitem__, quant) if isinstance(rule, BiasRounding) else quant
        value = floats[rule.bias if isinstance(rule, BiasRounding) else rule.weight]
        if isinstance(rounded, WeightQuant):
            return straight_through.quantize_weight(value, _moved(rounded, value))
        return straight_through.through(value, rounded.to(value.device))

    # The graph.

    def _build(self, simulated: GraphModule) -> GraphModule:
        """The simulated graph with gradients; its constants that follow from the model are inputs."""
        graph, copies = Graph(), dict[Node, Any]()
        buffers: dict[str, Any] = {}
        rules = {node.name: self._rule(node) for node in self.prepared.placed.graph_module.graph.nodes}
        nodes = list(simulated.graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        for node in nodes:
            rule = rules.get(node.name)
            if node.op == "get_attr" and rule is not None:
                copies[node] = graph.placeholder(f"live_{node.name}")
                self._live.append((node.name, rule, self._is_halved(node.name, rule, simulated)))
        tensors = self.scales.tensors if self.scales is not None else {}
        scales = {key: graph.placeholder(f"scale_{at}") for at, key in enumerate(tensors)}
        for node in nodes:
            if node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                if scales and node.target is requantize and FACTORS in node.meta:
                    _requantize_with(scales, copies[node], node.meta[FACTORS])
                elif (key := key_of(node)) in scales:
                    x, _, low, high = copies[node].args
                    copies[node].target, copies[node].args = learned.quantize, (x, scales[key], low, high)
                elif node.op == "get_attr":
                    value = stored(simulated, str(node.target))
                    buffers[str(node.target)] = value.detach() if isinstance(value, Tensor) else value
                elif node.op == "call_function":
                    copies[node].target = _with_gradient(node.target)
        module = GraphModule(buffers, graph, class_name="TrainedGraphModule")
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

    def _is_halved(self, name: str, rule: Any, simulated: GraphModule) -> bool:
        """Whether the simulation rounds a constant to float16, too.

        Raises:
            ConversionError: it is something else than the rule gives.
        """
        held = {each: stored(self.prepared.captured.graph_module, each) for each in _read(rule)}
        plain = {each: value.detach() for each, value in held.items() if isinstance(value, Tensor)}
        wanted = stored(simulated, name)
        assert isinstance(wanted, Tensor)
        found = self._rounded(rule, plain, plain, {})
        if torch.equal(found, wanted):
            return False
        if torch.equal(round_half(found), wanted):
            return True
        raise ConversionError(
            f"{name} is not what its rule gives: how it follows from the parameters is not known",
            hint="leave its layer in float (exclude=), or leave out algorithms=; report it as a fault of deploykit",
        )

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


def _requantize_with(scales: Mapping[Key, Node], node: Node, factors: tuple[Factor, Factor]) -> None:
    """Let a node whose scale and unit follow from scales follow those that are learned."""
    graph, (x, scale, low, high, unit) = node.graph, node.args

    def value(factor: Factor, constant: Any) -> Any:
        if not {factor.of, factor.by} & scales.keys():
            return constant
        of, by = (scales.get(key, key[0]) if key is not None else None for key in (factor.of, factor.by))
        return graph.call_function(learned.factor, (of, by, factor.is_half))

    with graph.inserting_before(node):
        found = (x, value(factors[0], scale), low, high, value(factors[1], unit))
    node.target, node.args = learned.requantize, found


def _with_gradient(target: Any) -> Any:
    """What trains in place of a function of the simulation.

    Raises:
        ConversionError: it is none of ours, nor an operator of PyTorch, which has its own gradient.
    """
    if target in straight_through.TRAINED_AS:
        return straight_through.TRAINED_AS[target]
    if isinstance(target, torch._ops.OpOverload) or getattr(target, "__module__", "") in ("_operator", "torch", "math"):
        return target
    raise ConversionError(f"the simulation computes {target}, which has no gradient that is known")


def _read(rule: Any) -> tuple[str, ...]:
    """The captured model's constants that a rule reads."""
    if isinstance(rule, str):
        return (rule,)
    if isinstance(rule, BiasRounding):
        return (rule.bias, *_read(rule.weight))
    bias = getattr(rule, "bias", None)
    return (rule.weight,) if bias is None else (rule.weight, bias)


def _moved(quant: WeightQuant, like: Tensor) -> WeightQuant:
    """The same on the device of a weight."""
    if like.device.type == "cpu":
        return quant
    return replace(quant, scales=quant.scales.to(like.device), zero_points=quant.zero_points.to(like.device))


class Kept:
    """A trained graph with the parameters that it had at one moment."""

    def __init__(self, graph: LiveGraph, tensors: Mapping[str, Tensor]) -> None:
        self._graph, self._tensors = graph, tensors

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one set of named arrays."""
        return self._graph.arrays(self.own, feeds)

    def own(self, name: str) -> Tensor:
        """A parameter or buffer as it was."""
        return self._tensors[name]


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
