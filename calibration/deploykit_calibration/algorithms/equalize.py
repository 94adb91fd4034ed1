"""`equalize` and `smooth`: channels of very different size are made alike before they share a scale.

Every channel is divided by a number where it is written and multiplied by it where it is read (`channel_scales`), which
changes nothing in float. `equalize` does so between convolutions and linear layers, `smooth` behind norms, where
transformers have channels that are far larger than others. How much of the spread goes from activations into weights
is one number for the network: the one with which the simulated outputs of the samples are best; none where none helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deploykit_calibration.algorithms import ROUNDED, SAMPLES, STATISTICS, Algorithm
from deploykit_calibration.algorithms.best import affordable_samples, worst_sqnr_db
from deploykit_calibration.channel_scales import ScaledChannels, scaled_channels, scaled_weights, weight_reach
from deploykit_calibration.reweigh import with_weights
from deploykit_calibration.simulate import values

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit_calibration.algorithms import Samples
    from deploykit_calibration.prepared import Prepared

_SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the spread of activations that goes into weights."""
_LARGEST = 1e3  # of a number, and of its inverse: float32 keeps what the network computes to the last digits


def scale_channels(prepared: Prepared, samples: Samples, *, norms: bool) -> Prepared:
    """The same model with other weights, or as it is where nothing is better on the samples."""
    if not prepared.scheme.quantizes:
        return prepared
    sets = [each for each in scaled_channels(prepared.captured) if bool(each.norms) == norms]
    if not sets:
        return prepared
    reach = _activation_reach(prepared, samples, sets)
    judged = samples[: affordable_samples(prepared)]
    wanted = [prepared.captured.run(feeds) for feeds in judged]
    candidates = [prepared, *(_scaled(prepared, samples, sets, reach, share) for share in _SHARES)]
    return max(candidates, key=lambda candidate: worst_sqnr_db(candidate, judged, wanted))


def _activation_reach(prepared: Prepared, samples: Samples, sets: Sequence[ScaledChannels]) -> list[Tensor]:
    """The largest magnitude of each channel of every set, float64."""
    found = [torch.zeros(each.size, dtype=torch.float64) for each in sets]
    where = {tensor.name: (place, axis) for place, each in enumerate(sets) for tensor, axis in each.tensors.items()}
    with torch.inference_mode():
        for feeds in samples:
            inputs = [feeds[spec.name] for spec in prepared.captured.inputs]
            for name, value in values(prepared.captured.graph_module, inputs, where.keys()):
                place, axis = where[name]
                largest = value.transpose(0, axis).flatten(1).abs().amax(1).double()
                found[place] = torch.maximum(found[place], largest)
    return found


def _scaled(
    prepared: Prepared, samples: Samples, sets: Sequence[ScaledChannels], reach: Sequence[Tensor], share: float
) -> Prepared:
    scales = [(each, _numbers(prepared, each, seen, share)) for each, seen in zip(sets, reach, strict=True)]
    captured = with_weights(prepared.captured, scaled_weights(prepared.captured, scales))
    changed = {tensor.name for each in sets for tensor in each.tensors}
    return observed_again(replace(prepared, captured=captured), samples, changed)


def _numbers(prepared: Prepared, channels: ScaledChannels, seen: Tensor, share: float) -> Tensor:
    """activations^share / weights^(1 - share), about 1; 1 for channels that are always zero."""
    weights = weight_reach(prepared.captured, channels)
    used = (seen > 0) & (weights > 0)
    logarithms = share * seen.clamp(min=1e-30).log() - (1 - share) * weights.clamp(min=1e-30).log()
    middle = logarithms[used].mean() if bool(used.any()) else logarithms.new_zeros(())
    numbers = (logarithms - middle).exp().clamp(1 / _LARGEST, _LARGEST)
    return torch.where(used, numbers, 1.0)


def observed_again(prepared: Prepared, samples: Samples, changed: set[str]) -> Prepared:
    """The model with statistics of its changed tensors, of the samples; what did not change keeps those of all data."""
    from deploykit_calibration.observe import calibrate

    before = prepared.statistics
    seen = calibrate(prepared.captured, list(samples), progress=False)
    statistics = {
        name: seen.statistics.get(name, each) if name in changed else each for name, each in before.statistics.items()
    }
    readers = {node.name for node in prepared.captured.graph_module.graph.nodes if _reads(node, changed)}
    inputs = {
        name: seen.layer_inputs.get(name, each) if name in readers else each
        for name, each in before.layer_inputs.items()
    }
    return replace(prepared, table=replace(before, statistics=statistics, layer_inputs=inputs))


def _reads(node: Node, changed: set[str]) -> bool:
    return any(source.name in changed for source in node.all_input_nodes)


_COST = "a calibration of the samples, a placement and a simulated run on them for each of five candidates: seconds"
_NEEDS = frozenset({STATISTICS, SAMPLES})

EQUALIZE = Algorithm(
    "equalize",
    partial(scale_channels, norms=False),
    cost=_COST,
    needs=_NEEDS,
    acts_on=frozenset({ROUNDED}),
    source="Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019)",
)
SMOOTH = Algorithm(
    "smooth",
    partial(scale_channels, norms=True),
    cost=_COST,
    needs=_NEEDS,
    acts_on=frozenset({ROUNDED}),
    source="Xiao et al., SmoothQuant (2023)",
)
