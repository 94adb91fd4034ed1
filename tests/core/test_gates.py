"""The gates between an artifact and its publication."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploykit.contract.achieved import Achieved, Delegation, LayerAchieved
from deploykit.contract.errors import ParityError, PerformanceError, PlacementError
from deploykit.contract.precision import Evidence, Precision
from deploykit.judge.parity import SIMULATED, Link
from deploykit.judge.spread import Spread
from deploykit.pipeline.gates import Gates
from deploykit.pipeline.placement import passing
from deploykit.pipeline.plan import Goals, _gates
from deploykit.plugin.registry import resolve

CANDIDATE = SimpleNamespace(path="out/x.failed")


def achieved(requested: str = "int8", /, **macs: int) -> Achieved:
    """One layer for each precision; `int8_weights` stands for `int8-weights`."""
    layers = [
        LayerAchieved(f"node_{name}", f"layer.{name}", "linear", name, count, weights=1, reason=f"{name} for a reason")
        for name, count in ((name.replace("_", "-"), count) for name, count in macs.items())
    ]
    return Achieved.count(requested, layers, source="a test")


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


def chain_of(toy, simulated_db, artifact_db):
    """float -> simulated -> artifact, with these SQNRs against float; the middle link is not looked at."""
    metrics = toy.make_parity().chain[0].worst
    ends = [replace(metrics, sqnr_db=simulated_db), metrics, replace(metrics, sqnr_db=artifact_db)]
    names = [("float PyTorch", SIMULATED), (SIMULATED, "artifact"), ("float PyTorch", "artifact")]
    return tuple(Link(*name, Evidence.DEVICE, end, {"output": end}) for name, end in zip(names, ends, strict=True))


def test_the_runtime_is_blamed_where_the_simulation_passes(toy):
    chain = chain_of(toy, 41.0, 12.7)
    report = toy.make_parity(passed=False, failures=("SQNR 12.7 dB is below 18 dB",), chain=chain, notes=("no vnni",))
    error = only(Gates(Precision.INT8), achieved(int8=1), report, None)
    assert (
        "the simulated graph reaches 41.0 dB: what differs is the runtime or the CPU, toy64 [toy_vnni]" in error.message
    )
    assert "another kind of CPU" in error.hint and "no vnni" in error.hint
    for words in ("worst layers", "exclude=", "calibration"):
        assert words not in str(error)


@pytest.mark.parametrize(("simulated_db", "artifact_db"), [(12.9, 12.7), (18.3, 17.7), (17.0, 5.0)])
def test_layers_are_blamed_where_the_simulation_differs_from_the_model(toy, simulated_db, artifact_db):
    chain = chain_of(toy, simulated_db, artifact_db)
    report = toy.make_parity(passed=False, failures=("SQNR is below 18 dB",), chain=chain)
    error = only(Gates(Precision.INT8), achieved(int8=1), report, None)
    assert "worst layers" in error.message and "exclude=['fc']" in error.hint and "calibration data" in error.hint


def test_more_samples_are_the_step_where_only_others_are_expected_to_miss(toy):
    """Layers that pass are not what is to be kept in float; where the samples themselves miss, they are."""
    wild = "values that differ wildly: `mean` (1.8 x)"
    for reached, others in ((35.0, True), (15.0, False)):
        chain = chain_of(toy, reached, reached)
        spread = Spread(low_db=10.0, high_db=39.0, samples=8, sample_db=(32.0,) * 8)
        last = replace(chain[-1], worst=replace(chain[-1].worst, spread=spread))
        report = replace(toy.make_parity(passed=False, failures=("SQNR",)), chain=(*chain[:-1], last), notes=(wild,))
        report = replace(report, tolerance=replace(report.tolerance, min_sqnr_db=18.0))
        hint = only(Gates(Precision.INT8), achieved(int8=1), report, None).hint
        assert (
            "calibrate on more samples" in hint and "the 8 that were judged pass" in hint and wild in hint
        ) is others
        assert ("exclude=" in hint) is not others
        assert "or let deploykit.tune look for a model that passes" in hint
        searched = only(Gates(Precision.INT8, searched=True), achieved(int8=1), report, None)
        assert "deploykit.tune" not in searched.hint


def test_a_task_metric_that_falls_is_no_fault_of_the_runtime(toy):
    report = toy.make_parity(passed=False, failures=("task metric fell",), chain=chain_of(toy, 41.0, 40.9))
    assert "exclude=" in only(Gates(Precision.INT8), achieved(int8=1), report, None).hint


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8_DYNAMIC, Precision.INT4_WEIGHT_ONLY])
def test_calibration_data_is_not_blamed_where_there_is_none(toy, precision):
    report = toy.make_parity(passed=False, failures=("SQNR 3 dB is below 18 dB",))
    made = achieved(float16=1) if precision is Precision.FP16 else achieved(int8=1)
    assert "calibration" not in Gates(precision).misses(made, report, None)[0].error(CANDIDATE).hint


def test_parity_without_layers(toy):
    report = toy.make_parity(passed=False, failures=("cosine",), layers=())
    error = only(Gates(Precision.FP32), achieved(float32=1), report, None)
    assert "worst layers" not in error.message and "exclude=" not in error.hint


def test_an_int8_artifact_without_int8_misses_even_if_nothing_was_asked(parity):
    error = only(Gates(Precision.INT8), achieved(float32=5), parity, None)
    assert isinstance(error, PlacementError) and error.exit_code == 8
    assert "nothing runs in int8" in error.message and "layer.float32: float32 for a reason" in error.message
    assert "min_placement=0 accepts" in error.hint


def test_float32_is_what_is_left_when_nothing_else_is_asked_for(parity):
    assert Gates(Precision.FP32).misses(achieved("fp32", float32=5), parity, None) == []
    assert Gates(Precision.FP32).misses(achieved("fp32", unknown=5), parity, None) == []


@pytest.mark.parametrize(
    ("precision", "macs", "missed"),
    [
        (Precision.INT8, {"int8": 5, "float32": 5}, False),
        (Precision.INT8, {"int8": 49, "float32": 51}, True),
        (Precision.INT8, {"int8_weights": 9, "float32": 1}, True),
        (Precision.INT8_DYNAMIC, {"int8": 2, "float32": 98}, True),
        (Precision.INT8_DYNAMIC, {"int8_weights": 9, "float32": 1}, True),
        (Precision.INT8_WEIGHT_ONLY, {"int8_weights": 9, "float32": 1}, False),
        (Precision.INT8_WEIGHT_ONLY, {"int4_weights": 9, "float32": 1}, False),
        (Precision.INT8_WEIGHT_ONLY, {"float16": 9}, True),
        (Precision.INT4_WEIGHT_ONLY, {"int4_weights": 80, "int8_weights": 9000}, True),
        (Precision.INT4_WEIGHT_ONLY, {"int4": 9, "float16": 1}, False),
        (Precision.INT6_PALETTE, {"6-bit palette": 9, "float16": 1}, False),
        (Precision.INT6_PALETTE, {"4-bit palette": 9, "float16": 1}, False),
        (Precision.INT4_PALETTE, {"6-bit palette": 9, "float16": 1}, True),
        (Precision.INT16X8, {"int16x8": 9, "float32": 1}, False),
        (Precision.INT16X8, {"float32": 9}, True),
        (Precision.FP16, {"float16": 9, "float32": 1}, False),
        (Precision.FP16, {"float16_weights": 9, "float32": 1}, False),
        (Precision.FP16, {"float32": 9}, True),
        (Precision.BF16, {"bfloat16": 9, "float32": 1}, False),
        (Precision.BF16, {"float32": 9}, True),
        (Precision.FP8, {"fp8": 9, "float16": 1}, False),
        (Precision.MIXED, {"int8": 9, "float16": 1}, False),
        (Precision.MIXED, {"float16": 9}, True),
    ],
)
def test_by_default_the_larger_part_is_in_the_precision(parity, precision, macs, missed):
    counted = achieved(precision.value, **macs)
    assert bool(Gates(precision).misses(counted, parity, None)) is missed
    accepted = Gates(precision, min_placement=passing(counted))
    assert accepted.misses(counted, parity, None) == [], "the hint's min_placement must pass"


def test_every_precision_has_a_default_or_is_the_float_one():
    for precision in Precision:
        assert precision.row.counts_as("float32") is (precision is Precision.FP32)
        assert bool(precision.row.further) is (precision is not Precision.FP32)


def test_the_hint_gives_the_share_that_passes(parity):
    counted = achieved("int8-dynamic", int8=1779, float32=98221)
    error = only(Gates(Precision.INT8_DYNAMIC, reaches_further=Precision.INT8), counted, parity, None)
    assert "1.8% of multiply-accumulates run in int8-dynamic" in error.message and "at least 50%" in error.message
    assert "min_placement=0.017" in error.hint and 'precision="int8"' in error.hint
    assert "not_as_requested" in error.hint
    assert Gates(Precision.INT8_DYNAMIC, min_placement=0.017).misses(counted, parity, None) == []
    assert Gates(Precision.INT8_DYNAMIC, min_placement=0.018).misses(counted, parity, None)


def test_what_the_delegate_takes_limits_the_share_that_passes(parity):
    taken = Delegation("XNNPACK", operators=9, delegated=1, macs_fraction=0.1, partitions=1, left={"GELU": 8})
    assert passing(replace(achieved(int8=4, float32=6), delegation=taken)) == 0.1


def test_layers_kept_by_request_are_not_held_against_the_default(parity):
    whole = achieved(int8=2, float32=98)
    kept = Achieved.count(
        "int8",
        [replace(layer, by_request=layer.precision == "float32") for layer in whole.layers],
        source="a test",
    )
    assert only(Gates(Precision.INT8), whole, parity, None)
    assert Gates(Precision.INT8).misses(kept, parity, None) == []
    assert only(Gates(Precision.INT8, min_placement=0.9), kept, parity, None), "an explicit share is of everything"


def test_everything_kept_by_request_leaves_nothing(parity):
    whole = achieved(float32=98)
    kept = Achieved.count("int8", [replace(layer, by_request=True) for layer in whole.layers], source="a test")
    assert "nothing runs in int8" in only(Gates(Precision.INT8), kept, parity, None).message


def test_a_precision_of_weights_is_not_about_products_without(parity):
    layers = [
        LayerAchieved("a", "a", "linear", "int4-weights", 40, weights=9),
        LayerAchieved("b", "b", "matmul", "float32", 60, reason="a product of two activations has no weights"),
    ]
    counted = Achieved.count("int4-weight-only", layers, source="a test")
    assert Gates(Precision.INT4_WEIGHT_ONLY).misses(counted, parity, None) == []
    assert only(Gates(Precision.INT4_WEIGHT_ONLY, min_placement=0.5), counted, parity, None)
    alone = Achieved.count("int4-weight-only", layers[1:], source="a test")
    assert "nothing runs in int4" in only(Gates(Precision.INT4_WEIGHT_ONLY), alone, parity, None).message


def test_an_operator_that_is_not_counted_is_not_passed_over(parity):
    layers = [*achieved(int8=9).layers, LayerAchieved("x", "x", "own::op", "unknown", reason="why", counted=False)]
    counted = Achieved.count("int8", layers, source="a test")
    error = only(Gates(Precision.INT8), counted, parity, None)
    assert "how often own::op multiplies" in error.message
    assert Gates(Precision.INT8, min_placement=0.9).misses(counted, parity, None) == []
    assert Gates(Precision.FP32).misses(replace(counted, requested="fp32"), parity, None) == []


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
    counted = achieved(precision.value, **macs)
    assert bool(Gates(precision, min_placement=0.9).misses(counted, parity, None)) is missed


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
    gates = Gates(Precision.INT8, instead=instead, reaches_further=instead)
    for report, share in ((failed, achieved(int8=1)), (parity, achieved(float32=5))):
        error = only(gates, share, report, None)
        assert ('precision="fp16"' in error.hint) is said and "int8-dynamic" not in error.hint


def test_what_loses_less_is_looked_up_at_the_target(toy):
    resolved = resolve("toy-board")
    found = {p: _gates(p, Goals(None, None, None), resolved, profile=False).instead for p in Precision}
    assert found[Precision.INT8] is Precision.FP32
    assert found[Precision.FP32] is None
