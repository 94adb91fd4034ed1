"""What pruning gains: both models are exported alike, and run in turns on the device."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from deploykit.contract.errors import PerformanceError, UsageError
from deploykit.contract.precision import Evidence
from deploykit.pipeline.export import export
from deploykit_calibration.observe import CalibrationRun
from deploykit_calibration.table import CalibrationTable
from deploykit_training.pruning.report import Gain

NO_GAIN = 1.05
"""Faster by less than this is not told apart from the noise of a machine."""


def check_goal(min_speedup: float | None, target: str | None, *, profile: bool) -> None:
    """Refuse a goal that cannot be measured.

    Raises:
        UsageError: no target to measure on, or no factor.
    """
    if (min_speedup is not None or profile) and target is None:
        raise UsageError("speed is measured on a target, and none is named", hint='target="x86-cpu"')
    if min_speedup is not None and not 0.0 < min_speedup < math.inf:
        raise UsageError(f"min_speedup is a factor above 0, not {min_speedup}")


def measure_gain(
    before: nn.Module, after: nn.Module, example_inputs: Any, *, target: str, precision: str, calibration: Any
) -> Gain:
    """Export both and measure them in turns.

    Args:
        calibration: data as `deploykit.export` takes it; for None and for ranges that are known already, which are of
            the larger model alone, ranges are made up: speed does not depend on them.
    Raises:
        DeploykitError: as `deploykit.export` raises; gates on accuracy are not asked here.
    """
    known = calibration is None or isinstance(calibration, CalibrationTable | CalibrationRun)
    with tempfile.TemporaryDirectory(prefix="deploykit-prune-") as folder:
        artifacts = [
            export(
                model,
                target,
                precision,
                example_inputs=example_inputs,
                calibration="synthetic" if known else calibration,
                profile=False,
                strict=False,
                progress=False,
                output=Path(folder) / name,
            )
            for name, model in (("before", before), ("after", after))
        ]
        measured = artifacts[1].plugin().profile(artifacts[1], baseline=("model before pruning", artifacts[0]))
        if measured.baseline_latency_ms is None:
            raise UsageError(
                f"{target} measures nothing here", hint="prune without min_speedup, and measure on the device"
            )
        return Gain(
            target,
            precision,
            measured.baseline_latency_ms.p50,
            measured.latency_ms.p50,
            artifacts[0].size_bytes,
            artifacts[1].size_bytes,
            measured.evidence.value,
        )


def check_gain(gain: Gain, min_speedup: float | None, kind: str) -> tuple[str, ...]:
    """What to say of a gain.

    Raises:
        PerformanceError: less than was asked for, or not measured on the device.
    """
    hint = _hint(kind)
    if min_speedup is not None and gain.evidence != Evidence.DEVICE.value:
        message = f"nothing was measured on the device ({gain.target}: evidence {gain.evidence}, {gain.speedup:.2f} x)"
        raise PerformanceError(message, hint="prune where the device is, or without min_speedup")
    if min_speedup is not None and gain.speedup < min_speedup:
        raise PerformanceError(
            f"{kind} pruning gains {gain.speedup:.2f} x on {gain.target} in {gain.precision}"
            f" ({gain.latency_before_ms:.3g} ms before, {gain.latency_after_ms:.3g} ms after);"
            f" {min_speedup:.2f} x was asked for, and the model is as it was",
            hint=hint,
        )
    if gain.speedup < NO_GAIN:
        return (f"pruning without gain: {gain.speedup:.2f} x on {gain.target} in {gain.precision}; {hint}",)
    return ()


def _hint(kind: str) -> str:
    if kind == "structured":
        return "remove more channels (ratio=), or round them to what the kernels take (round_to=)"
    return 'this runtime multiplies zeros like other weights: kind="structured" makes the products smaller'
