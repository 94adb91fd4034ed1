"""Roofline estimates for each compute unit of a device that is not here: Neural Engine, GPU, CPU.

A unit without a published rate has no estimate, and the profile says so. A device's own `peak_tops` are its Neural
Engine's; the other units stand under `units` in the device table, each with its source. What Core ML would choose is
not known here: the profile is that of the fastest unit that the options and the precision allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.artifact.store import StoredArtifact
from deploykit.contract.precision import Precision
from deploykit.judge.profiling import Percentiles, rounded
from deploykit.plugin.estimate import estimate, estimate_layers, traffic_in
from deploykit_targets.coreml.compress import WEIGHT_ONLY

if TYPE_CHECKING:
    from deploykit.contract.achieved import LayerAchieved
    from deploykit.contract.devices import Device
    from deploykit.judge.profiling import Profile

_BITS = {"int8": 8, "int4": 4, "6-bit": 6, "4-bit": 4}
NEURAL_ENGINE, GPU, CPU = "Neural Engine", "GPU", "CPU"
_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "all": (NEURAL_ENGINE, GPU, CPU),
    "cpu-only": (CPU,),
    "cpu-and-gpu": (GPU, CPU),
    "cpu-and-neural-engine": (NEURAL_ENGINE, CPU),
}


def estimated(artifact: StoredArtifact, device: Device, baseline: tuple[str, StoredArtifact] | None) -> Profile | None:
    """The estimate for the fastest unit, with those of the others in its notes.

    Args:
        artifact: its options say which units it may use.
        device: the device, with the rates of its units.
        baseline: what to call it, and the float artifact to compare with, on the fastest unit that runs it.
    Returns:
        The profile; None where no rate of a usable unit is published.
    """
    units = dict(_units(artifact, device))
    if not units:
        return None
    computed = _as_computed(artifact)
    profiles = {name: estimate(computed, unit) for name, unit in units.items()}
    best = min(profiles, key=lambda name: profiles[name].latency_ms.p50)
    listed = ", ".join(f"{name} {profile.latency_ms.p50:.3g} ms" for name, profile in profiles.items())
    missing = [name for name in _usable(artifact) if name not in units]
    notes = (f"compute unit: {best}; estimates by unit: {listed}", *_missing(missing))
    return replace(profiles[best], notes=(*profiles[best].notes, *notes), **_compared(baseline, device))


def _as_computed(artifact: StoredArtifact) -> StoredArtifact:
    """The artifact with the arithmetic of its layers where only weights are compressed: float16.

    A roofline counts two bytes for a weight of a float16 layer; the number of weights is scaled to the bytes there are.
    """
    if artifact.precision not in WEIGHT_ONLY:
        return artifact
    layers = (_float_layer(layer) for layer in artifact.achieved.layers)
    achieved = replace(artifact.achieved, layers=tuple(layers))
    return StoredArtifact(artifact.path, replace(artifact.manifest, achieved=achieved))


def _float_layer(layer: LayerAchieved) -> LayerAchieved:
    bits = next((width for name, width in _BITS.items() if layer.precision.startswith(name)), 0)
    return replace(layer, precision="float16", weights=layer.weights * bits // 16) if bits else layer


def _missing(names: Sequence[str]) -> tuple[str, ...]:
    return (f"no published rates of: {', '.join(names)}",) if names else ()


def _usable(artifact: StoredArtifact) -> tuple[str, ...]:
    """Units that the options allow and that compute in the precision; the Neural Engine has no float32."""
    from deploykit_targets.coreml.target import CoreMLOptions  # which imports this module

    allowed = _ALLOWED[artifact.manifest.chosen(CoreMLOptions).compute_units]
    return tuple(name for name in allowed if name != NEURAL_ENGINE or artifact.precision != Precision.FP32)


def _units(artifact: StoredArtifact, device: Device) -> Iterator[tuple[str, Device]]:
    """Usable units with published rates, each as a device of its own."""
    others: Mapping[str, Mapping[str, object]] = device.extra.get("units", {})
    for name in _usable(artifact):
        if name == NEURAL_ENGINE:
            if device.peak_tops:
                yield name, device
        elif name in others:
            rates = {key: float(str(value)) for key, value in others[name].items() if key != "source"}
            bandwidth = f"; bandwidth: {device.source}" if device.memory_gb_per_s else ""
            yield name, replace(device, peak_tops=rates, source=f"{others[name]['source']}{bandwidth}")


def _compared(baseline: tuple[str, StoredArtifact] | None, device: Device) -> dict[str, Any]:
    """The fields of a profile that speak of its float baseline; none where no unit's rate is known for it."""
    if baseline is None:
        return {}
    name, other = baseline
    traffic = traffic_in(other)
    times = [
        sum(layer.microseconds for layer in estimate_layers(other.achieved, unit, traffic)) / 1e3
        for _, unit in _units(other, device)
    ]
    if not times:
        return {}
    return {
        "baseline": name,
        "baseline_latency_ms": Percentiles(*[rounded(min(times))] * 5),
        "baseline_size_bytes": other.size_bytes,
    }
