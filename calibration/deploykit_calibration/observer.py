"""The observer of a calibration pass: for every floating value of a captured graph, statistics over all batches.

Looks at as little as possible: a view has the statistics of what it views, and what relu and clamp make is computed
from the sample and the extremes of their operand, exactly.

Refuses NaN, and infinity where the model does not make it on purpose (a mask of -inf before a softmax), naming
batch, tensor, module and source line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from deploykit.contract.errors import CalibrationError
from deploykit_calibration.channel_sums import ChannelSums, ChannelSumsBuilder
from deploykit_calibration.execution import floating_nodes
from deploykit_calibration.graph_view import is_constant, masking_inputs
from deploykit_calibration.op_kinds import (
    bias_argument,
    data_arguments,
    input_channel_axis,
    kind_of,
    weight_argument,
)
from deploykit_calibration.sample_extremes import SampleExtremes
from deploykit_calibration.sampling import Observation, Sampler, Values, extremes
from deploykit_calibration.statistics import StatisticsBuilder, TensorStatistics

if TYPE_CHECKING:
    from deploykit.capture.model import CapturedModel

aten = torch.ops.aten

# Ops whose result holds the same values as their first operand.
VIEWS = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.dropout.default,
        aten.expand.default,
        aten.flatten.using_ints,
        aten.permute.default,
        aten.reshape.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
    }
)

_SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})

Monotone = Callable[[Values], Values]


class Observer:
    """Collects statistics; hand `see` to an `Executor`, and call `begin` before each batch.

    Args:
        captured: the model.
        seed: the seed of the random positions.
    """

    def __init__(self, captured: CapturedModel, seed: int) -> None:
        self._captured = captured
        self._sampler = Sampler(seed)
        nodes = list(floating_nodes(captured.graph_module))
        known = {node.name for node in nodes}
        self._aliases = dict(_aliases(nodes, known))
        self._clamps = {
            node.name: (node.args[0].name, clamp)
            for node in nodes
            if (clamp := _as_clamp(node)) and isinstance(node.args[0], fx.Node) and node.args[0].name in known
        }
        self._kept = {source for source, _ in self._clamps.values()}
        self._recent: dict[str, Observation] = {}
        self._builders = {name: StatisticsBuilder() for name in known if name not in self._aliases}
        self._inputs = {layer: read for layer, read in _layer_inputs(captured.graph_module) if read[0] in known}
        self._axes: dict[str, list[int]] = {}
        for source, axis in dict.fromkeys(self._inputs.values()):
            self._axes.setdefault(source, []).append(axis)
        self._sums: dict[tuple[str, int], ChannelSumsBuilder] = {}
        self._may_be_infinite = _may_be_infinite(captured)
        self._batch, self._means = "", True

    def begin(self, batch: str, number: int, rows: int, *, length: int = 0, means: bool = True) -> None:
        """Start a batch.

        Args:
            batch: its name in errors, such as `batch 3`.
            number: counts the batches of the pass; the random positions depend on it, whoever observes it.
            rows: samples in it.
            length: the length of axis 0 of what counts samples there, repeated ones included; 0 where nothing does.
            means: whether it counts in the means of layers' inputs.
        """
        self._batch, self._means = batch, means
        self._recent.clear()
        self._sampler.begin(number, rows, length)

    def see(self, name: str, value: Any) -> None:
        """Take in the value of a node."""
        for axis in self._axes.get(name, ()) if self._means else ():
            self._sum(name, axis, value)
        builder = self._builders.get(name)
        if builder is None:
            return
        observed = self._observation(name, value)
        if math.isnan(observed.minimum) or (observed.infinite and name not in self._may_be_infinite):
            raise self._not_finite(name, "NaN" if math.isnan(observed.minimum) else "infinity")
        if name in self._kept:
            self._recent[name] = observed
        builder.add(
            observed.minimum,
            observed.maximum,
            observed.count,
            observed.sample,
            nonfinite=observed.infinite,
            samples=observed.samples,
        )

    def statistics(self) -> dict[str, TensorStatistics]:
        """Statistics by node name, in no order; the views share the object of what they view."""
        built = {name: builder.build() for name, builder in self._builders.items()}
        return built | {name: built[source] for name, source in self._aliases.items()}

    def layer_inputs(self) -> dict[str, ChannelSums]:
        """Statistics of inputs, by the layer that reads them; layers with one input share the object."""
        built = {read: sums.build() for read, sums in self._sums.items()}
        found = ((layer, built.get(read)) for layer, read in self._inputs.items())
        return {layer: sums for layer, sums in found if sums is not None}

    def _sum(self, name: str, axis: int, value: Tensor) -> None:
        channels = value.shape[axis]
        if not value.numel():
            return
        if (name, axis) not in self._sums:
            self._sums[name, axis] = ChannelSumsBuilder(channels)
        dims = [dim for dim in range(value.ndim) if dim != axis]
        # PyTorch adds bfloat16 up in float32 and rounds once, by 0.4 % at most; asked for float32 it is 6 times slower.
        sums = (value.sum(dims) if dims else value).double().numpy()
        self._sums[name, axis].add(sums, value.numel() // channels)

    def _observation(self, name: str, value: Tensor) -> Observation:
        source, clamp = self._clamps.get(name, (None, None))
        seen = self._recent.get(source) if source else None
        if seen is None or clamp is None or seen.infinite or not seen.count:
            return self._sampler.observe(value)
        low, high = clamp(np.array([seen.minimum, seen.maximum])).tolist()
        return replace(
            seen, minimum=low, maximum=high, sample=clamp(seen.sample), samples=_clamped(seen.samples, clamp)
        )

    def _not_finite(self, name: str, what: str) -> CalibrationError:
        origin = self._captured.origins.get(name)
        hint = (
            "the inputs of this batch are finite: the model overflows on them; "
            "look at their scale, or run the model on this batch alone"
        )
        if (weight := _nan_weight(self._captured.graph_module)) is not None:
            hint = f"the weight {weight!r} holds NaN: check how the model was trained or loaded"
        return CalibrationError(
            f"calibration {self._batch}: {name!r} holds {what}: {origin or 'a model input'}", hint=hint
        )


class Extremes:
    """Exact extremes alone, for one batch: what is needed to compare two ways of computing."""

    def __init__(self, captured: CapturedModel) -> None:
        self._names = {node.name for node in floating_nodes(captured.graph_module)}
        self.found: dict[str, tuple[float, float]] = {}

    def see(self, name: str, value: Any) -> None:
        """Take in the value of a node."""
        if name in self._names:
            self.found[name] = extremes(value)


# Of a range's width. An extreme is one element, so deep in a network some are off by more than the rest; 5 % of a
# range is 0.4 dB of one tensor's quantization noise, and less than extremes move from one batch to the next.
TYPICAL_TOLERANCE = 0.01
LARGEST_TOLERANCE = 0.05


def agree(exact: Mapping[str, tuple[float, float]], other: Mapping[str, tuple[float, float]]) -> bool:
    """Whether two ways of computing give the same ranges: the median within 1 % of the width, every one within 5 %."""
    deviations = [_deviation(exact[name], other[name]) for name in exact]
    # Written so that NaN never agrees.
    return not deviations or bool(np.median(deviations) <= TYPICAL_TOLERANCE and max(deviations) <= LARGEST_TOLERANCE)


def _deviation(exact: tuple[float, float], other: tuple[float, float]) -> float:
    """Largest difference of a bound, as a part of the exact range's width with zero; NaN where either is not finite."""
    off = max(abs(exact[0] - other[0]), abs(exact[1] - other[1]))
    width = max(exact[1], 0.0) - min(exact[0], 0.0)
    return off / width if width else math.inf if off else 0.0


def _aliases(nodes: list[fx.Node], known: set[str]) -> Iterator[tuple[str, str]]:
    """(view, the first node whose values it shows)."""
    roots: dict[str, str] = {}
    for node in nodes:
        source = node.args[0] if node.target in VIEWS and node.args else None
        if isinstance(source, fx.Node) and source.name in known:
            roots[node.name] = roots.get(source.name, source.name)
            yield node.name, roots[node.name]


def _layer_inputs(module: fx.GraphModule) -> Iterator[tuple[str, tuple[str, int]]]:
    """(layer, (its input, the axis of the channels)) of layers whose bias can be corrected."""
    for node in module.graph.nodes:
        if (
            kind_of(node) in ("conv", "linear")
            and is_constant(weight_argument(node))
            and is_constant(bias_argument(node))
        ):
            yield node.name, (data_arguments(node)[0].name, input_channel_axis(node))


def _as_clamp(node: fx.Node) -> Monotone | None:
    """The NumPy form of an op that only limits its operand; None for any other op."""
    bounds: tuple[Any, ...]
    args: tuple[Any, ...] = node.args
    if node.target is aten.relu.default:
        bounds = (0.0, None)
    elif node.target is aten.hardtanh.default:
        bounds = (-1.0, 1.0) if len(args) == 1 else (*args[1:3], 1.0)[:2]
    elif node.target is aten.clamp.default:
        bounds = (*args[1:3], None, None)[:2]
    else:
        return None
    if node.kwargs or not all(bound is None or isinstance(bound, int | float) for bound in bounds):
        return None
    low, high = (None if bound is None else np.float32(bound) for bound in bounds)
    return lambda values: np.clip(values, low, high)


def _clamped(samples: SampleExtremes, clamp: Monotone) -> SampleExtremes:
    """Extremes of samples after a function that keeps their order."""
    lowest, highest = (tuple((clamp(np.array(ends)) + 0.0).tolist()) for ends in (samples.lowest, samples.highest))
    return SampleExtremes(samples.count, lowest, highest)


def _nan_weight(module: fx.GraphModule) -> str | None:
    """Name of the first constant that holds NaN; None where all are sound, and the fault lies in what is computed."""
    for node in module.graph.find_nodes(op="get_attr"):
        constant = fx.graph_module._get_attr(module, str(node.target))
        if isinstance(constant, Tensor) and bool(constant.isnan().any()):
            return str(node.target)
    return None


def _may_be_infinite(captured: CapturedModel) -> set[str]:
    """Names of the nodes that an infinity reaches which a mask or the model itself (a constant, an argument) holds."""
    reached: set[fx.Node] = set()
    module, masks = captured.graph_module, masking_inputs(captured)
    for node in module.graph.nodes:
        if node.op == "placeholder" and node.name in masks:
            reached.add(node)
        elif node.op == "get_attr":
            constant = fx.graph_module._get_attr(module, str(node.target))
            if isinstance(constant, Tensor) and constant.is_floating_point() and bool(constant.isinf().any()):
                reached.add(node)
        elif node.op == "call_function" and node.target not in _SOFTMAX:
            written = any(isinstance(x, float) and math.isinf(x) for x in (*node.args, *node.kwargs.values()))
            if written or any(source in reached for source in node.all_input_nodes):
                reached.add(node)
    return {node.name for node in reached}
