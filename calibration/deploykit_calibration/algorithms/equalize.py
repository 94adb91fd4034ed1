"""`equalize` and `smooth`: channels of very different size are made alike before they share a scale.

Every channel is divided by a number where it is written and multiplied by it where it is read (`channel_scales`), which
changes nothing in float. `equalize` does so between convolutions and linear layers, `smooth` behind norms, where
transformers have channels that are far larger than others. A ReLU6 passes a channel on as ReLU does as long as the
channel stays below six before and after: those that do not, or that further samples may take there, stay as they are.
How much of the spread goes from activations into weights is one number for the network: the one with which simulated
outputs are best on samples that the numbers did not come from; none where none gains half a decibel there. It is what a
recipe records (`share`, 0 for none), and what an export that follows one takes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deploykit.contract.errors import UsageError
from deploykit_calibration.algorithms import ROUNDED, SAMPLES, STATISTICS, Algorithm
from deploykit_calibration.algorithms.best import affordable_samples, worst_sqnr_db
from deploykit_calibration.channel_scales import ScaledChannels, scaled_channels, scaled_weights, weight_reach
from deploykit_calibration.reuse import once, told_by
from deploykit_calibration.reweigh import with_weights
from deploykit_calibration.simulate import free, values

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit.capture import CapturedModel
    from deploykit_calibration.algorithms import Samples
    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.table import CalibrationTable

SHARE = "share"
"""The name of what is decided."""
_SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the spread of activations that goes into weights."""
_LEAST_HALVED = 4
_WORTH_DB = 0.5  # a smaller gain on a few samples is a matter of the draw
_SURE = 5.0  # standard deviations above the mean of a channel that no sample goes beyond
_CAP = 5.7  # of a ReLU6, with 5 % of room
_LARGEST = 1e3  # of a number, and of its inverse: float32 keeps what the network computes to the last digits


def scale_channels(prepared: Prepared, samples: Samples, *, norms: bool) -> Prepared:
    """The same model with other weights, or as it is where nothing is better on samples that no number came from."""
    name = "smooth" if norms else "equalize"
    sets = [each for each in scaled_channels(prepared.captured, capped=True) if bool(each.norms) == norms]
    if not prepared.scheme.quantizes or not sets:
        return replace(prepared, decided={SHARE: 0.0})
    known = prepared.decided.get(SHARE)
    share = _best_share(prepared, samples, sets) if known is None else _checked(name, known)
    if not share:
        return replace(prepared, decided={SHARE: share})

    def scaled() -> tuple[CapturedModel, CalibrationTable | None]:
        made = _scaled(prepared, samples, sets, _reach(prepared, samples, sets), share)
        return made.captured, made.table

    # what layers compute in has no part in it: candidates that differ in that have the same
    key = (prepared.captured.fingerprint, id(prepared.table), told_by(samples), share)
    captured, table = once(name, key, scaled, held=(samples, prepared.table))
    return replace(prepared, captured=captured, table=table, decided={SHARE: share})


def _checked(name: str, share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        raise UsageError(f"{SHARE} of {name} is {share!r}", hint="0 for none of the spread, up to 1 for all of it")
    return float(share)


def _best_share(prepared: Prepared, samples: Samples, sets: Sequence[ScaledChannels]) -> float:
    """The share that is best on samples that no number came from; 0 where none is half a decibel better there."""
    fitted, judged = _halves(samples)
    judged = judged[: affordable_samples(prepared)]
    wanted = [prepared.captured.run(feeds) for feeds in judged]
    reach = _reach(prepared, fitted, sets)

    def figure(candidate: Prepared) -> float:
        found = worst_sqnr_db(candidate, judged, wanted)
        candidate.release()
        if candidate.captured is not prepared.captured:
            free(candidate.captured.graph_module)
        return found

    figures = {share: figure(_scaled(prepared, fitted, sets, reach, share)) for share in _SHARES}
    best = max(_SHARES, key=figures.__getitem__)
    changed = {tensor.name for each in sets for tensor in each.tensors}
    plain = observed_again(prepared, fitted, changed)  # it has seen no more than they have
    return best if figures[best] >= figure(plain) + _WORTH_DB else 0.0


def _halves(samples: Samples) -> tuple[Samples, Samples]:
    """Samples that numbers are from, and others that they are judged on; of a few the same."""
    return (samples[::2], samples[1::2]) if len(samples) >= _LEAST_HALVED else (samples, samples)


@dataclass(frozen=True, eq=False)
class _Reach:
    """What samples told of the channels of one set, float64, shape (size,).

    Attributes:
        largest: the largest magnitude of each channel, in any tensor of the set.
        capped: how far each goes before a ReLU6 that passes it on, with room for what was not seen.
    """

    largest: Tensor
    capped: Tensor


def _reach(prepared: Prepared, samples: Samples, sets: Sequence[ScaledChannels]) -> list[_Reach]:
    found = [_Reach(*(torch.zeros(each.size, dtype=torch.float64) for _ in range(2))) for each in sets]
    where = {tensor.name: (place, axis) for place, each in enumerate(sets) for tensor, axis in each.tensors.items()}
    capped = {tensor.name for each in sets for tensor in each.capped}
    with torch.inference_mode():
        for feeds in samples:
            inputs = [feeds[spec.name] for spec in prepared.captured.inputs]
            for name, value in values(prepared.captured.graph_module, inputs, where.keys()):
                place, axis = where[name]
                channels = value.transpose(0, axis).flatten(1).double()
                _raise(found[place].largest, channels.abs().amax(1))
                if name in capped:
                    spread = channels.std(1, correction=0)
                    _raise(found[place].capped, torch.maximum(channels.amax(1), channels.mean(1) + _SURE * spread))
    return found


def _raise(known: Tensor, seen: Tensor) -> None:
    torch.maximum(known, seen, out=known)


def _scaled(
    prepared: Prepared, samples: Samples, sets: Sequence[ScaledChannels], reach: Sequence[_Reach], share: float
) -> Prepared:
    scales = [(each, _numbers(prepared, each, seen, share)) for each, seen in zip(sets, reach, strict=True)]
    captured = with_weights(prepared.captured, scaled_weights(prepared.captured, scales))
    changed = {tensor.name for each in sets for tensor in each.tensors}
    return observed_again(replace(prepared, captured=captured), samples, changed)


def _numbers(prepared: Prepared, channels: ScaledChannels, seen: _Reach, share: float) -> Tensor:
    """activations^share / weights^(1 - share), about 1; 1 for channels that are always zero.

    Through a ReLU6 the largest channels keep their size and the others grow towards six, none beyond it: a channel
    that reaches it already stays as it is.
    """
    weights = weight_reach(prepared.captured, channels)
    used = (seen.largest > 0) & (weights > 0)
    logarithms = share * seen.largest.clamp(min=1e-30).log() - (1 - share) * weights.clamp(min=1e-30).log()
    chosen = logarithms[used] if bool(used.any()) else logarithms.new_zeros(1)
    middle = chosen.max() if channels.capped else chosen.mean()
    numbers = torch.where(used, (logarithms - middle).exp().clamp(1 / _LARGEST, _LARGEST), 1.0)
    if not channels.capped:
        return numbers
    least = seen.capped / _CAP
    return torch.where(least < 1, torch.maximum(numbers, least), 1.0)


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


_COST = "a calibration of half of the samples and a simulated run on the rest for each of five candidates: seconds"
_NEEDS = frozenset({STATISTICS, SAMPLES})

EQUALIZE = Algorithm(
    "equalize",
    partial(scale_channels, norms=False),
    cost=_COST,
    needs=_NEEDS,
    version="2",
    decides=frozenset({SHARE}),
    acts_on=frozenset({ROUNDED}),
    source="Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019)",
)
SMOOTH = Algorithm(
    "smooth",
    partial(scale_channels, norms=True),
    cost=_COST,
    needs=_NEEDS,
    version="2",
    decides=frozenset({SHARE}),
    acts_on=frozenset({ROUNDED}),
    source="Xiao et al., SmoothQuant (2023)",
)
