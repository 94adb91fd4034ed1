"""The gates between an artifact and its publication."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploykit._gates import Gates
from deploykit._plan import _instead
from deploykit.achieved import Achieved, Delegation, LayerAchieved
from deploykit.errors import ParityError, PerformanceError, PlacementError
from deploykit.precision import Evidence, Precision
from deploykit.registry import resolve

CANDIDATE = SimpleNamespace(path="out/x.failed")


def achieved(**macs: int) -> Achieved:
    layers = [
        LayerAchieved(f"node_{name}", f"layer.{name}", "linear", name, count, reason=f"{name} for a reason")
        for name, count in macs.items()
    ]
    return Achieved.count("int8", layers, source="a test")


def only(gates, *arguments):
    misses = gates.misses(*arguments)
    assert len(misses) == 1
    error = misses[0].error(CANDIDATE)
    assert error.candidate is CANDIDATE and error.message == misses[0].message
    return error


@pytest.fixture
def parity(toy):
    return toy.make_parity()


def test_nothing_is_missed(toy, parity):
    gates = Gates(Precision.INT8, min_placement=0.9, min_speedup=2.0)
    assert gates.misses(achieved(int8=9, float32=1), parity, toy.make_profile()) == []


def test_parity_names_the_worst_layers_and_what_to_exclude(toy):
    report = toy.make_parity(passed=False, failures=("SQNR 3 dB is below 18 dB",))
    error = only(Gates(Precision.INT8), achieved(int8=1), report, None)
    assert isinstance(error, ParityError) and error.report is report and error.exit_code == 6
    assert (
        "SQNR 3 dB is below 18 dB" in error.message
        and "fc 31.2 dB" in error.message
        and "relu 40.0 dB" in error.message
    )
    assert "exclude=['fc']" in error.hint


def test_parity_without_layers(toy):
    report = toy.make_parity(passed=False, failures=("cosine",), layers=())
    error = only(Gates(Precision.FP32), achieved(float32=1), report, None)
    assert "worst layers" not in error.message and "exclude=" not in error.hint


def test_an_int8_artifact_without_int8_misses_even_if_nothing_was_asked(parity):
    error = only(Gates(Precision.INT8), achieved(float32=5), parity, None)
    assert isinstance(error, PlacementError) and error.exit_code == 8
    assert "nothing runs in int8" in error.message and "layer.float32: float32 for a reason" in error.message


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_float_artifacts_need_no_integers(parity, precision):
    assert Gates(precision).misses(achieved(float32=5), parity, None) == []


def test_a_model_without_multiplications_has_nothing_to_place(parity):
    assert Gates(Precision.INT8, min_placement=1.0).misses(achieved(), parity, None) == []


@pytest.mark.parametrize(
    ("precision", "macs", "missed"),
    [
        (Precision.INT8, {"int8": 9, "float32": 1}, False),
        (Precision.INT8, {"int8": 8, "float32": 2}, True),
        (Precision.INT8, {"int8": 5, "int4": 4, "float16": 1}, False),
        (Precision.FP16, {"float16": 9, "float32": 1}, False),
        (Precision.FP16, {"float16": 1, "float32": 9}, True),
        (Precision.BF16, {"bfloat16": 9, "float32": 1}, False),
        (Precision.FP8, {"fp8": 9, "float16": 1}, False),
        (Precision.FP8, {"float16": 1}, True),
    ],
)
def test_min_placement_counts_the_asked_precision(parity, precision, macs, missed):
    assert bool(Gates(precision, min_placement=0.9).misses(achieved(**macs), parity, None)) is missed


def test_min_speedup(toy, parity):
    gates = Gates(Precision.INT8, min_speedup=2.5)
    error = only(gates, achieved(int8=1), parity, toy.make_profile())
    assert isinstance(error, PerformanceError) and error.exit_code == 7
    assert "2.00 x" in error.message and "2.50 x was asked for" in error.message


def test_a_speedup_that_cannot_be_measured_misses(toy, parity):
    profile = toy.make_profile(baseline="", baseline_latency_ms=None)
    assert "not measurable" in only(Gates(min_speedup=1.0), achieved(float32=1), parity, profile).message


@pytest.mark.parametrize("evidence", [Evidence.ESTIMATE, Evidence.REFERENCE])
@pytest.mark.parametrize("factor", [0.5, 9.0])
def test_an_estimate_neither_meets_nor_misses_a_factor(toy, parity, evidence, factor):
    gates = Gates(Precision.INT8, min_speedup=factor)
    error = only(gates, achieved(int8=1), parity, toy.make_profile(evidence=evidence))
    assert isinstance(error, PerformanceError)
    assert "nothing was measured on the device" in error.message and f"(evidence `{evidence}`: 2.00 x)" in error.message
    assert "deploykit profile" in error.hint and "deploykit build" in error.hint


def test_a_speed_gate_without_any_figure_misses(parity):
    """A device under emulation without published rates has no profile at all."""
    error = only(Gates(Precision.INT8, min_speedup=1.5), achieved(int8=1), parity, None)
    assert "nothing was measured" in error.message


def test_several_misses_parity_first(toy):
    report = toy.make_parity(passed=False, failures=("SQNR",))
    gates = Gates(Precision.INT8, min_placement=1.0, min_speedup=9.0)
    errors = [miss.error(CANDIDATE) for miss in gates.misses(achieved(int8=1, float32=1), report, toy.make_profile())]
    assert [type(error) for error in errors] == [ParityError, PlacementError, PerformanceError]


def test_placement_asked_for_holds_for_the_delegate_too(parity):
    taken = Delegation("XNNPACK", operators=9, delegated=7, macs_fraction=0.8, partitions=2, left={"GELU": 2})
    counted = replace(achieved(int8=10), delegation=taken)
    assert Gates(Precision.INT8).misses(counted, parity, None) == []
    assert Gates(Precision.INT8, min_placement=0.8).misses(counted, parity, None) == []
    error = only(Gates(Precision.INT8, min_placement=0.9), counted, parity, None)
    assert isinstance(error, PlacementError)
    assert "XNNPACK takes 80.0%" in error.message and "not 2 GELU" in error.message


@pytest.mark.parametrize(("instead", "said"), [(Precision.FP16, True), (None, False)])
def test_the_next_step_is_one_that_the_target_has(toy, parity, instead, said):
    failed = toy.make_parity(passed=False, failures=("cosine",))
    for report, share in ((failed, achieved(int8=1)), (parity, achieved(float32=5))):
        error = only(Gates(Precision.INT8, instead=instead), share, report, None)
        assert ('precision="fp16"' in error.hint) is said and "int8-dynamic" not in error.hint


def test_what_loses_less_is_looked_up_at_the_target(toy):
    resolved = resolve("toy-board")
    assert _instead(Precision.INT8, resolved) is Precision.FP32
    assert _instead(Precision.FP32, resolved) is None
