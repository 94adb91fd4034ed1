"""Roofline: how fast a model could be on a device that is not here, computed from the device table.

    time of a layer = max(2 x MACs / peak operations per second, bytes moved / memory bandwidth)

after Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (CACM 52(4), 2009). Bytes are weights, inputs and outputs once each, in the precision of the layer.
Elementwise operators are taken as fused, launch times as nothing, the silicon as fully used: it is a lower bound of the
latency, and says so everywhere (`Evidence.ESTIMATE`). It refuses to estimate without a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.devices import Device
from deploykit.errors import DeviceError
from deploykit.host import Host
from deploykit.precision import Evidence
from deploykit.profiling import Percentiles, Profile, batch_size
from deploykit.session import OpTime

if TYPE_CHECKING:
    from deploykit.achieved import Achieved, LayerAchieved
    from deploykit.artifact import Artifact

FORMULA = "layer time = max(2 x MACs / peak rate, bytes / bandwidth); lower bound, elementwise operators taken as fused"
TRAFFIC = "traffic"
"""Key of an artifact's metadata: layer name to the number of elements it reads and writes, weights excluded."""

_BYTES = {"int8": 1, "float8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "int16": 2}
# Precision as counted -> keys of `Device.peak_tops`, best first: without a published rate the next wider one is used.
_RATES = {
    "int8": ("int8", "fp16", "fp32"),
    "float8": ("fp8", "fp16", "fp32"),
    "float16": ("fp16", "fp32"),
    "bfloat16": ("bf16", "fp16", "fp32"),
    "float32": ("fp32",),
}


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
        device: with rates and bandwidth.
        traffic: layer name to (elements read, elements written), weights excluded.
    Raises:
        DeviceError: the device table has no rates.
    """
    if not device.peak_tops:
        raise DeviceError(
            f"there are no published rates of {device.name} to estimate from", hint="profile on the device"
        )
    return tuple(_layer(layer, device, traffic.get(layer.name, (0, 0))) for layer in achieved.layers)


def _layer(layer: LayerAchieved, device: Device, elements: Sequence[int]) -> LayerEstimate:
    width = _BYTES.get(layer.precision, 4)
    moved = width * (layer.weights + sum(elements))
    bandwidth = device.memory_gb_per_s
    memory_us = moved / (bandwidth * 1e3) if bandwidth else 0.0
    if not layer.macs:
        return LayerEstimate(layer, 0.0, memory_us, "")
    usable = [key for key in _RATES.get(layer.precision, ("fp32",)) if key in device.peak_tops]
    rate = usable[0] if usable else min(device.peak_tops, key=lambda key: device.peak_tops[key])
    return LayerEstimate(layer, 2 * layer.macs / (device.peak_tops[rate] * 1e6), memory_us, rate)


def estimate(artifact: Artifact, device: Device, *, baseline: tuple[str, Artifact] | None = None) -> Profile:
    """The roofline of an artifact as a profile that is marked as an estimate.

    Args:
        artifact: its metadata holds `traffic`.
        device: what it is for.
        baseline: what to call it, and the float artifact to compare with.
    Raises:
        DeviceError: the device table has no rates.
    """
    layers = estimate_layers(artifact.achieved, device, artifact.manifest.metadata.get(TRAFFIC, {}))
    total_ms = sum(layer.microseconds for layer in layers) / 1e3
    rows = batch_size(artifact.inputs, artifact.golden().inputs[0])
    other = baseline and estimate_layers(baseline[1].achieved, device, baseline[1].manifest.metadata.get(TRAFFIC, {}))
    return Profile(
        latency_ms=_constant(total_ms),
        batch_size=rows,
        throughput_per_s=rows / (total_ms / 1e3) if total_ms else 0.0,
        throughput_by_batch={},
        peak_memory_bytes=None,
        size_bytes=artifact.size_bytes,
        evidence=Evidence.ESTIMATE,
        threads=0,
        warm_up=0,
        runs=0,
        host=Host(device.arch, (), 0, f"none: computed from the table of {device.name}"),
        op_times=_op_times(layers),
        baseline=f"{baseline[0]} (estimate)" if baseline else "",
        baseline_latency_ms=_constant(sum(layer.microseconds for layer in other) / 1e3) if other else None,
        baseline_size_bytes=baseline[1].size_bytes if baseline else None,
        notes=_notes(layers, device),
    )


def _constant(milliseconds: float) -> Percentiles:
    return Percentiles(*[milliseconds] * 5)


def _op_times(layers: Iterable[LayerEstimate]) -> tuple[OpTime, ...]:
    times = [
        OpTime(each.layer.name, each.layer.op, each.layer.module_path, each.microseconds)
        for each in layers
        if each.microseconds
    ]
    return tuple(sorted(times, key=lambda time: -time.mean_us))


def _wanted(precision: str) -> str:
    return _RATES.get(precision, ("fp32",))[0]


def _notes(layers: Sequence[LayerEstimate], device: Device) -> tuple[str, ...]:
    wider = {
        (each.layer.precision, each.rate) for each in layers if each.rate and each.rate != _wanted(each.layer.precision)
    }
    missing = tuple(
        f"{precision} layers use the {rate} rate: theirs is not published" for precision, rate in sorted(wider)
    )
    bound = sum(each.memory_us > each.compute_us for each in layers)
    said = f"{bound} of {len(layers)} layers are bound by memory"
    return (f"estimate, not measured: {FORMULA}", f"rates and bandwidth: {device.source}", said, *missing)
