"""What a quantized model does to samples that are still to come, where its values differ wildly from sample to sample.

What comes out of an exponential or a power (radial basis functions, rates, sizes of boxes) may be ten times larger in
the next sample than in the dozen that calibration saw. No range holds that, no held-out sample shows it before it
comes, and one such sample is most of the error. So the simulation is run once more with ranges that are to the samples
at hand as the real ones will be to further ones: an end that further samples are expected to pass by a factor is drawn
in by that factor.

How far they go is told by the extremes of single samples: beyond a threshold among them they are taken to fall off by
a power (Hill's estimate of it; Embrechts, Klueppelberg, Mikosch, "Modelling Extremal Events", section 6.4.2). That
holds for such values alone, whose mean excess over a threshold grows with the threshold; of normal noise it shrinks,
and `unseen` has left room enough. It grows of products and whole powers, too, which fall off faster than any power:
where their `degrees` are known, `unseen` has left room for that as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.fx import Graph, GraphModule, Node

from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.op_kinds import kind_of
from deploykit_calibration.simulate import SimulatedModel, fake_quantize
from deploykit_calibration.statistics import HALF_BINS, TensorStatistics
from deploykit_calibration.tails import MOST_ROOT

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared

FURTHER = 256
"""Samples that are looked ahead to; from as many on, calibration has seen what is to be expected."""

_OUTERMOST = 0.4  # of the samples' extremes: beyond these the power is taken
_LEAST = 4  # extremes: fewer tell no power
_QUANTILES, _VALUES = (0.5, 0.05), 8  # of the values from above; so many at least beyond the second
_GROWS = 1.5  # mean excess over the outer quantile against that over the inner; 1 if exponential, 0.6 of normal noise
_WORTH = 1.25  # factors below are no wild values
_BOUNDED = frozenset({"softmax", "sigmoid", "hardsigmoid", "tanh", "clip", "relu6"})

Ends = tuple[float, float]


@dataclass(frozen=True)
class Foreseen:
    """The simulation as it would meet further samples.

    Attributes:
        simulation: the simulation that is run on the samples at hand.
        tensors: the values that are expected to go further than was seen, and by which factor.
    """

    simulation: SimulatedModel
    tensors: Mapping[str, float]

    def worst(self, count: int = 3) -> list[tuple[str, float]]:
        """The tensors that go furthest, and their factors."""
        return sorted(self.tensors.items(), key=lambda found: -found[1])[:count]


def foresee(prepared: Prepared) -> Foreseen | None:
    """None where nothing is quantized by statistics, or what was seen tells of no wild values."""
    if not prepared.scheme.quantizes or prepared.table is None:
        return None
    degrees = GraphView.of(prepared.captured).degrees
    known = {name for name, degree in degrees.items() if 1 < degree <= MOST_ROOT and _is_widened(prepared, name)}
    wild = {name: further_by(found) for name, found in prepared.table.statistics.items() if name not in known}
    wild = {name: factors for name, factors in wild.items() if max(factors) > _WORTH}
    simulation = prepared.simulation if wild else None
    if simulation is None or not simulation.rounds:
        return None
    graph, met = _drawn_in(simulation.graph_module.graph, wild, prepared.table.statistics)
    if not met:
        return None
    drawn = copy(simulation)
    drawn.graph_module = GraphModule(simulation.graph_module, graph, class_name="ForeseenGraphModule").eval()
    return Foreseen(drawn, met)


def _is_widened(prepared: Prepared, name: str) -> bool:
    """Whether the range of a tensor has room for what further samples show."""
    return prepared.methods.get(name, prepared.method) == "default"


def further_by(statistics: TensorStatistics) -> Ends:
    """By which factors the lowest and the highest of `FURTHER` more samples are expected to pass what was seen.

    Returns:
        (of the lower end, of the upper end), 1 where the values are not wild, or enough samples were seen.
    """
    samples = statistics.samples
    if samples.count >= FURTHER:
        return 1.0, 1.0
    ends = ((-1, samples.lowest), (1, samples.highest))
    low, high = (_factor(statistics, sign, [sign * value for value in values]) for sign, values in ends)
    return low, high


def _factor(statistics: TensorStatistics, sign: int, extremes: list[float]) -> float:
    outermost = [value for value in extremes if value > 0.0][: math.ceil(_OUTERMOST * len(extremes))]
    if len(outermost) < _LEAST or not _grows(statistics, sign):
        return 1.0
    power = sum(math.log(value / outermost[-1]) for value in outermost[:-1]) / (len(outermost) - 1)
    return float((FURTHER / statistics.samples.count) ** power)


def _grows(statistics: TensorStatistics, sign: int) -> bool:
    """Whether values of a sign beyond an outer quantile pass it by more, in the mean, than those beyond an inner."""
    counts = (statistics.histogram[HALF_BINS:] if sign > 0 else statistics.histogram[HALF_BINS - 1 :: -1]).copy()
    counts[0] -= statistics.zeros if sign > 0 else 0
    total = int(counts.sum())
    if total * _QUANTILES[1] < _VALUES:
        return False
    above = np.cumsum(counts[::-1])[::-1]
    inner, outer = (int(np.searchsorted(-above, -share * total, side="right")) - 1 for share in _QUANTILES)
    means = [float(np.arange(len(counts) - at) @ counts[at:]) / max(int(counts[at:].sum()), 1) for at in (inner, outer)]
    return means[1] >= _GROWS * means[0]


def _drawn_in(
    graph: Graph, wild: Mapping[str, Ends], statistics: Mapping[str, TensorStatistics]
) -> tuple[Graph, dict[str, float]]:
    """A copy of a fused graph whose quantizers of wild values end further in; and which those are."""
    drawn, copies, met = Graph(), dict[Node, Node](), dict[str, float]()
    for node in graph.nodes:
        copies[node] = drawn.node_copy(node, copies.__getitem__)
        source = node.args[0] if node.target is fake_quantize else None
        if source is None or source.name not in wild or kind_of(source) in _BOUNDED:
            continue
        bounds, factor = _bounds(node, wild[source.name], statistics[source.name])
        if factor > _WORTH:
            copies[node].args = (copies[source], node.args[1], *bounds)
            met[source.name] = factor
    return drawn, met


def _bounds(node: Node, factors: Ends, statistics: TensorStatistics) -> tuple[Ends, float]:
    """Both ends of a quantizer, in steps, and the largest factor by which further samples pass one."""
    scale, seen = float(node.args[1]), (-statistics.minimum, statistics.maximum)  # type: ignore[arg-type]
    ends = [abs(float(node.args[2])), abs(float(node.args[3]))]  # type: ignore[arg-type]
    passed = [1.0, 1.0]
    for side in range(2):
        foreseen = factors[side] * seen[side]
        if factors[side] > 1.0 and foreseen > ends[side] * scale > 0.0:
            passed[side] = foreseen / (ends[side] * scale)
            ends[side] = min(ends[side], seen[side] / (passed[side] * scale))
    return (-ends[0], ends[1]), max(passed)
