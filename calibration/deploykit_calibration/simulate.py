"""Run a q/dq graph in PyTorch, fast: the simulated int8 reference of every target.

`fuse` turns each quantize -> dequantize pair into one function with exactly the same results, and dequantizes stored
weights once. `SimulatedModel` is what the pipeline's parity chain runs; it also rounds the inputs of layers that do so
at run time. Integer kernels are not imitated: sums are float32, so a runtime may differ from this by the rounding of
its accumulators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from deploykit.capture.calls import stored
from deploykit.contract.decibels import sqnr_db
from deploykit.judge.parity import LayerParity
from deploykit_calibration.graph_view import read_last
from deploykit_calibration.heap import trim
from deploykit_calibration.run_time import round_inputs

if TYPE_CHECKING:
    import numpy as np

    from deploykit.capture import CapturedModel
    from deploykit.contract.formats import TensorScheme
    from deploykit_calibration.placement import QuantizedGraph

_NONE: Mapping[str, TensorScheme] = {}
_OPS = torch.ops.quantized_decomposed
_QUANTIZE = (_OPS.quantize_per_tensor.default, _OPS.quantize_per_channel.default)
_DEQUANTIZE = (_OPS.dequantize_per_tensor.default, _OPS.dequantize_per_channel.default)


def fake_quantize(x: Tensor, scale: float, low: int, high: int) -> Tensor:
    """Round to multiples of `scale` from `low * scale` to `high * scale`, ties to even.

    Equal, bit for bit, to quantize_per_tensor and dequantize_per_tensor with low = quant_min - zero_point and
    high = quant_max - zero_point: adding the zero-point after rounding and taking it away again is exact.
    """
    return x.mul(1.0 / scale).round_().clamp_(low, high).mul_(scale)


def requantize(x: Tensor, scale: float, low: int, high: int, unit: float) -> Tensor:
    """The integers of `fake_quantize`, by division, in multiples of `unit`: for kernels that sum in other units."""
    return x.div(scale).round_().clamp_(low, high).mul_(unit)


def round_away(x: Tensor, zero: int) -> Tensor:
    """Round to integers, ties away from `-zero`: for kernels that round integers with their zero-point in them."""
    moved = x + zero
    return moved.abs().add_(0.5).floor_().mul_(moved.sign()).sub_(zero)


Key = tuple[float, int, int]
"""What a scale is known by: itself, and the lowest and highest multiple of it."""

FACTORS = "deploykit_factors"
"""In the meta of a `requantize`: how its scale and its unit follow from other scales, two `Factor`s."""


@dataclass(frozen=True)
class Factor:
    """A number of the simulation that follows from scales: `of / by`.

    Attributes:
        of, by: the scales; None is 1.
        is_half: rounded to float16.
    """

    of: Key | None = None
    by: Key | None = None
    is_half: bool = False


def key_of(node: Node) -> Key | None:
    """The scale that a node of a simulated graph rounds its result with; None of other nodes."""
    if node.target is requantize:
        factors: tuple[Factor, Factor] | None = node.meta.get(FACTORS)
        return None if factors is None or factors[1].by is not None else factors[1].of
    if node.target is not fake_quantize:
        return None
    _, scale, low, high = node.args
    assert isinstance(scale, float) and isinstance(low, int) and isinstance(high, int)
    return scale, low, high


def fake_float8(x: Tensor, scale: float, limit: int) -> Tensor:
    """Round to E4M3 multiples of `scale`, ties to even, saturating at `limit` of them."""
    return x.div(scale).clamp_(-limit, limit).to(torch.float8_e4m3fn).to(x.dtype).mul_(scale)


def round_half(x: Tensor) -> Tensor:
    """Round to float16; the values are float32 again."""
    return x.half().float()


def fuse(graph_module: GraphModule, run_time: Mapping[str, TensorScheme] = _NONE) -> GraphModule:
    """A copy of a q/dq graph that gives the same results in fewer passes over memory.

    Args:
        graph_module: as `place` made it; it is not changed.
        run_time: what layers round their input to when they run, see `QuantizedGraph`.
    Returns:
        A module with the original node names; it holds weights as float32.
    """
    graph, copies = Graph(), dict[Node, Node]()
    buffers: dict[str, Any] = {}
    for node in graph_module.graph.nodes:
        constant = _constant_value(graph_module, node)
        if constant is not None:
            buffers[node.name] = constant
            copies[node] = graph.create_node("get_attr", node.name, name=node.name)
        elif node.target is _DEQUANTIZE[0] and node.args[0].target is _QUANTIZE[0]:
            copies[node] = _fused(graph, node, copies)
        elif node.target in _QUANTIZE:
            continue  # its value is only read by the dequantize behind it
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.name in run_time:
                round_inputs(copies[node], run_time[node.name])
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
            buffers.pop(str(node.target))
    return GraphModule(buffers, graph, class_name="SimulatedGraphModule").eval()


def _fused(graph: Graph, node: Node, copies: Mapping[Node, Node]) -> Node:
    """One call in place of a quantize and the dequantize behind it."""
    pair: Any = node.args[0]
    source, scale, zero_point, low, high, dtype = pair.args
    if dtype.is_floating_point:
        return graph.create_node("call_function", fake_float8, (copies[source], scale, high), name=node.name)
    args = (copies[source], scale, low - zero_point, high - zero_point)
    return graph.create_node("call_function", fake_quantize, args, name=node.name)


def _constant_value(module: GraphModule, node: Node) -> Tensor | None:
    """The value of a stored tensor, or of one that is (quantized and) dequantized."""
    if node.op == "get_attr":
        value = stored(module, str(node.target))
        return value.detach() if isinstance(value, Tensor) else None
    if node.target not in (*_DEQUANTIZE, _QUANTIZE[1]) and node.target is not _QUANTIZE[0]:
        return None
    operands = {source: _constant_value(module, source) for source in node.all_input_nodes}
    if any(value is None for value in operands.values()):
        return None
    args: Any = map_arg(node.args, operands.__getitem__)
    with torch.no_grad():
        stored8 = args[0].dtype is torch.float8_e4m3fn
        result: Tensor = _float8_value(*args) if stored8 else node.target(*args)
    return result


def _float8_value(stored: Tensor, scales: Tensor | float, *rest: Any) -> Tensor:
    """What a stored float8 weight is, which PyTorch's own operators do not multiply."""
    if not isinstance(scales, Tensor):
        return stored.float() * scales
    shape = [1] * stored.ndim
    shape[rest[1]] = -1
    return stored.float() * scales.reshape(shape)


def free(graph_module: GraphModule) -> None:
    """Let go of the tensors of a graph that is not run again, at once: its circles wait for a full collection."""
    for part in graph_module.modules():
        part._buffers.clear()
        part._parameters.clear()
    trim()


def run(graph_module: GraphModule, feeds: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Run a flat graph by input names.

    Args:
        graph_module: captured, q/dq or fused.
        feeds: one tensor for each placeholder, by name.
    Returns:
        The outputs, in the graph's order.
    """
    names = [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]
    with torch.inference_mode():
        result: tuple[Tensor, ...] = graph_module(*(feeds[name] for name in names))
    return result


def values(module: GraphModule, inputs: Sequence[Tensor], watched: AbstractSet[str]) -> Iterator[tuple[str, Tensor]]:
    """Run a flat graph step by step; yield (name, value) of watched nodes, and free what is no longer needed."""
    dying = read_last(module.graph)
    environment: dict[Node, Any] = {}
    remaining = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "output":
            return
        environment[node] = next(remaining) if node.op == "placeholder" else evaluate(module, node, environment)
        if node.name in watched:
            yield node.name, environment[node]
        for dead in dying.get(node, ()):
            del environment[dead]


def evaluate(module: GraphModule, node: Node, environment: Mapping[Node, Any]) -> Any:
    """Compute a `get_attr` or `call_function` node from the values of its inputs."""
    if node.op == "get_attr":
        return stored(module, str(node.target))
    args = map_arg(node.args, environment.__getitem__)
    kwargs = map_arg(node.kwargs, environment.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


class SimulatedModel:
    """A q/dq graph beside its float graph, as the parity chain wants them.

    Args:
        captured: the float model.
        quantized: what `place` made of it.

    Attributes:
        float_activations: as `place` found them.
        rounds: whether any layer is quantized; where none is, this is the float model.
    """

    def __init__(self, captured: CapturedModel, quantized: QuantizedGraph) -> None:
        self._captured = captured
        self._layers = {layer.name: layer for layer in quantized.layers}
        self.float_activations = quantized.float_activations
        self.rounds = any(layer.precision != "float" for layer in quantized.layers)
        self.graph_module = fuse(quantized.graph_module, quantized.run_time)
        trim()  # rounding weights and widening them again leaves as much free as stays

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one set of named arrays to named arrays."""
        with torch.inference_mode():
            outputs = self.graph_module(*self._named(feeds).values())
        names = [spec.name for spec in self._captured.outputs]
        return {name: tensor.contiguous().numpy() for name, tensor in zip(names, outputs, strict=True)}

    def compare_layers(self, samples: Iterable[Mapping[str, np.ndarray]]) -> list[LayerParity]:
        """SQNR of every layer against the float graph, worst first; both graphs run in lock-step.

        Memory is that of two forward passes, whatever the number of samples.
        """
        powers = {name: [0.0, 0.0] for name in self._layers}
        for feeds in samples:
            inputs = list(self._named(feeds).values())
            graphs = (self._captured.graph_module, self.graph_module)
            with torch.inference_mode():
                for (name, want), (_, got) in zip(*(values(g, inputs, powers.keys()) for g in graphs), strict=True):
                    if isinstance(want, Tensor) and want.is_floating_point():
                        _add_powers(powers[name], want, got)
        found = [self._parity(name, *power) for name, power in powers.items() if power[0] > 0.0]
        return sorted(found, key=lambda layer: layer.sqnr_db)

    def _named(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {spec.name: torch.from_numpy(feeds[spec.name]) for spec in self._captured.inputs}

    def _parity(self, name: str, signal: float, noise: float) -> LayerParity:
        layer = self._layers[name]
        return LayerParity(name, layer.module_path, layer.kind, sqnr_db(signal, noise))


def _add_powers(powers: list[float], want: Tensor, got: Tensor) -> None:
    """Add the powers of signal and noise, where both are finite: a mask's infinity, added to both, is neither."""
    if not bool(want.isfinite().all() & got.isfinite().all()):
        finite = want.isfinite() & got.isfinite()
        want, got = want[finite], got[finite]
    powers[0] += float(want.double().square().sum())
    powers[1] += float((want - got).double().square().sum())
