"""The gate on speed: what was measured on the device decides, and a miss leaves the model alone."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

import deploykit
from deploykit_training.pruning.report import Gain
from deploykit_training.pruning.rounding import DEFAULT, round_to_of
from deploykit_training.pruning.speed import check_gain

sys.path.insert(0, str(Path(__file__).parent))

import misread as nets

FASTER = Gain("x86-cpu", "int8", 4.0, 2.0, 4000, 1000, "device")
SAME = dataclasses.replace(FASTER, latency_after_ms=3.9)


def test_a_gain_is_one_from_a_twentieth_on() -> None:
    assert FASTER.speedup == 2.0 and not check_gain(FASTER, None, "structured") and not check_gain(FASTER, 2.0, "2:4")
    (finding,) = check_gain(SAME, None, "unstructured")
    assert "pruning without gain: 1.03 x on x86-cpu in int8" in finding and "multiplies zeros" in finding
    with pytest.raises(deploykit.PerformanceError, match=r"2\.00 x on x86-cpu.*2\.50 x was asked for"):
        check_gain(FASTER, 2.5, "structured")


def test_an_estimate_passes_no_gate() -> None:
    with pytest.raises(deploykit.PerformanceError, match="nothing was measured on the device"):
        check_gain(dataclasses.replace(FASTER, evidence="estimate"), 1.5, "structured")


def test_both_models_are_exported_and_measured_and_a_miss_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = nets.Residual().eval()
    before = copy.deepcopy(model.state_dict())
    arguments = {"target": "x86-cpu", "round_to": 8}
    with pytest.raises(deploykit.PerformanceError, match=r"1000\.00 x was asked for, and the model is as it was"):
        deploykit.prune(model, (nets.image(),), min_speedup=1000.0, **arguments)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    report = deploykit.prune(model, (nets.image(),), profile=True, **arguments)
    assert report.gain is not None and report.gain.latency_after_ms > 0 and report.gain.evidence == "device"
    assert report.gain.size_after_bytes < report.gain.size_before_bytes
    assert f"{report.gain.speedup:.2f} x, evidence device" in str(report)
    assert report.to_dict()["gain"]["speedup"] == report.gain.speedup


def test_channels_are_rounded_for_the_toolchain() -> None:
    assert round_to_of("x86-cpu") == 16 and round_to_of("jetson-orin") == 32 and round_to_of("android") == DEFAULT
    with pytest.raises(deploykit.UnknownTargetError):
        round_to_of("abacus")
