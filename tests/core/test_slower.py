"""Where the time goes, and why a quantised artifact is slower than its float build."""

from dataclasses import replace

import pytest

from deploykit.contract.achieved import Achieved, FloatActivation, LayerAchieved
from deploykit.contract.precision import Evidence
from deploykit.contract.session import OpTime
from deploykit.judge.slower import explained, time_shares

LAYERS = (
    LayerAchieved("conv", "c.0", "conv", "int8", 9_000_000, 100),
    LayerAchieved("head", "head", "linear", "float32", 1_000_000, 10, "graph output"),
)
BESIDE = (
    FloatActivation("silu", "c.1", "silu", 2000, 8000),
    FloatActivation("gate", "", "mul", 1000, 4000),
    FloatActivation("renamed", "c.3", "hardswish", 10, 40),
)
TIMES = (
    OpTime("conv", "QLinearConv", "c.0", 40.0),
    OpTime("silu", "Sigmoid", "c.1", 10.0),
    OpTime("silu", "Mul", "c.1", 10.0),
    OpTime("silu", "QuantizeLinear", "c.1", 15.0),
    OpTime("gate", "Mul", "", 5.0),
    OpTime("conv", "DequantizeLinear", "c.0", 10.0),
    OpTime("head", "Gemm", "head", 10.0),
)


@pytest.fixture
def achieved():
    return replace(Achieved.count("int8", LAYERS, source="a test"), float_activations=BESIDE)


@pytest.fixture
def slow(toy):
    profile = toy.make_profile(op_times=TIMES)
    return replace(profile, baseline_latency_ms=replace(profile.latency_ms, p50=0.8 * profile.latency_ms.p50))


def test_shares_are_of_the_operators_that_the_runtime_names(achieved, slow):
    assert time_shares(slow, achieved) == pytest.approx({"silu": 0.2, "gate": 0.05})
    assert time_shares(replace(slow, op_times=()), achieved) == time_shares(None, achieved) == {}


def test_a_slower_artifact_says_so_and_why_largest_first(achieved, slow):
    (finding,) = explained(slow, achieved)
    assert (finding.rule, finding.severity) == ("slower-than-float", "warning")
    said = finding.message
    assert "int8 is 0.80 x as fast as the" in said and "measured" in said
    causes = (
        "25% of its time is float activations (silu 20%, mul 5%)",
        "25% of its time is conversions",
        "10% of its time is layers that are",
    )
    places = [said.index(each) for each in causes]
    assert places == sorted(places) and "(head 10%)" in said and "only" not in said


def test_without_times_the_bytes_are_told(achieved, slow):
    (finding,) = explained(replace(slow, op_times=(), evidence=Evidence.ESTIMATE), achieved)
    assert "3 float activations move 12,040 bytes a run" in finding.message and "by estimate" in finding.message


def test_a_tiny_model_is_told_that_calls_take_the_time(slow):
    tiny = Achieved.count("int8", [replace(LAYERS[0], macs=1000)], source="a test")
    assert "only 1,000 multiply-accumulates" in explained(slow, tiny)[0].message


def test_nothing_is_found_where_there_is_nothing(achieved, slow, toy):
    assert explained(toy.make_profile(), achieved) == ()  # twice as fast
    assert explained(replace(slow, baseline_latency_ms=None), achieved) == ()
    assert explained(slow, replace(achieved, requested="fp32")) == ()


def test_module_paths_cover_layers_and_what_is_between(achieved):
    assert achieved.module_paths == {"conv": "c.0", "head": "head", "silu": "c.1", "gate": "", "renamed": "c.3"}
