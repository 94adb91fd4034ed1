"""Roofline: how fast a model could be on a device that is not here, computed from the device table.

    time of a layer = max(2 x MACs / peak operations per second, unavoidable bytes / memory bandwidth)

after Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (CACM 52(4), 2009). Unavoidable is what must cross the memory bus in a run that begins with cold caches
and computes layer after layer: every weight, and the network's inputs and outputs, once. Of the tensors between layers
only what cannot stay in the last-level cache counts: where all that a layer reads (or writes) is larger than the
cache, the rest of it; nothing where the table has no size of the cache. Activations, and an addition behind the layer
that computes one of its operands, are fused: such an addition reads its other operand and nothing else.

Every term is the least there can be, launches and address arithmetic cost nothing, the silicon is fully used: the sum
is a lower bound of the latency, unless a rate had to be replaced by a slower one, which the notes then say. It is
marked `Evidence.ESTIMATE` everywhere, and rounded to two significant digits: rates of data sheets mean no more. It
refuses to estimate without a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.contract.devices import Device
from deploykit.contract.errors import DeviceError
from deploykit.contract.formats import dtype_of, rate_bytes, rates_of
from deploykit.contract.host import Host
from deploykit.contract.precision import Evidence
from deploykit.contract.session import OpTime
from deploykit.judge.profiling import Percentiles, Profile, batch_size, rounded

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.achieved import Achieved, LayerAchieved

FORMULA = "layer time = max(2 x MACs / peak rate, unavoidable bytes / bandwidth), layer after layer"


@dataclass(frozen=True)
class LayerEstimate:
    """The two times of a layer; the larger one counts.

    Attributes:
        layer: what was counted.
        compute_us, memory_us: microseconds for arithmetic and for moving bytes.
        rate: key of the device table that gave the arithmetic rate; "" where the layer has no arithmetic.
    """

    layer: LayerAchieved
    compute_us: float
    memory_us: float
    rate: str

    @property
    def microseconds(self) -> float:
        """The layer's time under the roofline."""
        return max(self.compute_us, self.memory_us)


def estimate_layers(
    achieved: Achieved, device: Device, traffic: Mapping[str, Sequence[int]]
) -> tuple[LayerEstimate, ...]:
    """Estimate every layer.

    Args:
        achieved: layers with their multiply-accumulates, weights and precision.
        device: the device, with rates and bandwidth.
        traffic: see `manifest.Facts`.
    Raises:
        DeviceError: the device table has no rates.
    """
    if not device.peak_tops:
        raise DeviceError(
            f"there are no published rates of {device.name} to estimate from", hint="profile on the device"
        )
    # Who wrote a tensor is not known here, and so not its type: the narrowest that there is keeps the bound one.
    narrowest = min((_width(layer) for layer in achieved.layers), default=1)
    return tuple(
        _layer(layer, device, _unavoidable_bytes(layer, device, traffic.get(layer.name, ()), narrowest))
        for layer in achieved.layers
    )


def relative_cost(achieved: Achieved) -> float:
    """Multiply-accumulates, each times the bytes of its type: compares builds of one model where no rates are known."""
    return sum(layer.macs * _width(layer) for layer in achieved.layers)


def _width(layer: LayerAchieved) -> float:
    """Bytes of an activation."""
    return dtype_of(layer.precision).bytes


def traffic_in(artifact: StoredArtifact) -> dict[str, tuple[int, ...]]:
    """What an artifact records of what its layers move, checked.

    Raises:
        ArtifactError: it is something else.
    """
    return artifact.manifest.facts.traffic


def _unavoidable_bytes(layer: LayerAchieved, device: Device, traffic: Sequence[int], narrowest: float) -> float:
    read, written, network = (*traffic, 0, 0, 0)[:3]
    weights = 0 if layer.op == "embedding" else layer.weights  # of a table only a few rows are read
    found = dtype_of(layer.precision).weight_bytes * weights + network
    if device.last_level_cache_mib is not None:
        cache = device.last_level_cache_mib * 2**20
        found += sum(max(0.0, narrowest * elements - cache) for elements in (read, written))
    return found


def _layer(layer: LayerAchieved, device: Device, moved: float) -> LayerEstimate:
    bandwidth = device.memory_gb_per_s
    memory_us = moved / (bandwidth * 1e3) if bandwidth else 0.0
    if not layer.macs:
        return LayerEstimate(layer, 0.0, memory_us, "")
    usable = [key for key in rates_of(layer.precision) if key in device.peak_tops]
    rate = usable[0] if usable else min(device.peak_tops, key=lambda key: device.peak_tops[key])
    return LayerEstimate(layer, 2 * layer.macs / (device.peak_tops[rate] * 1e6), memory_us, rate)


def estimate(
    artifact: StoredArtifact, device: Device, *, baseline: tuple[str, StoredArtifact] | None = None
) -> Profile:
    """The roofline of an artifact as a profile that is marked as an estimate.

    Args:
        artifact: its metadata holds `traffic`.
        device: what it is for.
        baseline: what to call it, and the float artifact to compare with.
    Raises:
        DeviceError: the device table has no rates.
    """
    traffic = traffic_in(artifact)
    layers = estimate_layers(artifact.achieved, device, traffic)
    total_ms = rounded(sum(layer.microseconds for layer in layers) / 1e3)
    rows = batch_size(artifact.inputs, artifact.golden().inputs[0])
    throughput = rounded(rows / (total_ms / 1e3)) if total_ms else 0.0
    other = baseline and estimate_layers(baseline[1].achieved, device, traffic_in(baseline[1]))
    return Profile(
        latency_ms=_constant(total_ms),
        batch_size=rows,
        throughput_per_s=throughput,
        throughput_by_batch={str(rows): throughput},
        peak_memory_bytes=None,
        size_bytes=artifact.size_bytes,
        evidence=Evidence.ESTIMATE,
        threads=0,
        warm_up=0,
        runs=0,
        host=Host(device.arch, (), 0, f"device table of {device.name}"),
        op_times=_op_times(layers),
        baseline=baseline[0] if baseline else "",
        baseline_latency_ms=_constant(rounded(sum(each.microseconds for each in other) / 1e3)) if other else None,
        baseline_size_bytes=baseline[1].size_bytes if baseline else None,
        notes=_notes((*layers, *(other or ())), layers, device, traffic),
    )


def _constant(milliseconds: float) -> Percentiles:
    return Percentiles(*[milliseconds] * 5)


def _op_times(layers: Iterable[LayerEstimate]) -> tuple[OpTime, ...]:
    times = [
        OpTime(each.layer.name, each.layer.op, each.layer.module_path, rounded(each.microseconds))
        for each in layers
        if each.microseconds
    ]
    return tuple(sorted(times, key=lambda time: -time.median_us))


def _notes(
    rated: Sequence[LayerEstimate],
    layers: Sequence[LayerEstimate],
    device: Device,
    traffic: Mapping[str, Sequence[int]],
) -> tuple[str, ...]:
    """What was counted, and whether it is a bound.

    Args:
        rated: the layers whose rates are spoken of, those of the baseline too.
        layers: the layers of the artifact.
    """
    bound = sum(each.memory_us > each.compute_us for each in layers)
    return (
        f"estimate, not measured: {FORMULA}; two significant digits",
        _counted(device, traffic),
        *_rate_notes(rated),
        f"rates and bandwidth: {device.source}",
        f"{bound} of {len(layers)} layers are bound by memory",
        *(("a speed-up is the ratio of two such estimates",) if len(rated) > len(layers) else ()),
    )


def _counted(device: Device, traffic: Mapping[str, Sequence[int]]) -> str:
    network = any(len(entry) > 2 for entry in traffic.values())
    once = "weights, network inputs and outputs, once each" if network else "weights, once each"
    cache = device.last_level_cache_mib
    between = "not the tensors between layers, as if a cache held them (its size is not in the table)"
    if cache is not None:
        between = f"of the tensors between layers what one layer reads or writes beyond the {cache:g} MiB of cache"
    fused = "; activations and residual additions are fused: an addition costs the read of its other operand"
    return f"bytes counted: {once}; {between}{fused if cache is not None else ''}"


def _rate_notes(layers: Iterable[LayerEstimate]) -> tuple[str, ...]:
    used = sorted({(each.layer.precision, each.rate) for each in layers if each.rate})
    others = [(precision, rate) for precision, rate in used if rate_bytes(rate) != dtype_of(precision).bytes]
    slower = [precision for precision, rate in others if (rate_bytes(rate) or 4) > dtype_of(precision).bytes]
    bound = "a lower bound of a run that begins with cold caches"
    return (
        f"no lower bound: {', '.join(slower)} may be faster than the rate used" if slower else bound,
        *(f"{precision} layers use the {rate} rate: theirs is not published" for precision, rate in others),
        *("float32 layers use the tf32 rate: the matrix units round their operands" for _, r in used if r == "tf32"),
    )
