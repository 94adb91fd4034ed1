"""Parity metrics against hand-computed figures, their laws, and the gate."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import TensorSpec
from deploykit.judge import margins
from deploykit.judge.parity import (
    SQNR_CAP_DB,
    Metrics,
    OutputComparison,
    Stage,
    TaskMetric,
    Tolerance,
    compare_chain,
    compare_sessions,
    failures_of,
    margin_of,
    sqnr_db,
    tolerance_of,
    worst_of,
)

FLOATS = st.floats(-1e6, 1e6, width=32)


def metrics_of(reference, candidate, name="output") -> Metrics:
    comparison = OutputComparison(name)
    comparison.add(np.asarray(reference), np.asarray(candidate))
    return comparison.metrics


# -- figures ----------------------------------------------------------------------------------------------------


def test_sqnr_by_hand():
    # signal 9 + 16 = 25, noise 0.25: 10 log10(100) = 20 dB
    found = metrics_of(np.float32([3.0, 4.0]), np.float32([3.5, 4.0]))
    assert found.sqnr_db == pytest.approx(20.0)
    assert found.max_abs == 0.5
    assert found.cosine == pytest.approx((3 * 3.5 + 16) / (5 * np.hypot(3.5, 4.0)))
    assert found.top1_agreement is None


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.0, SQNR_CAP_DB),
        (0.0, 0.0, SQNR_CAP_DB),
        (0.0, 1.0, -SQNR_CAP_DB),
        (1.0, 1e-30, SQNR_CAP_DB),
        (2.0, 2.0, 0.0),
    ],
)
def test_sqnr_at_its_limits(signal, noise, expected):
    assert sqnr_db(signal, noise) == expected


def test_equal_outputs_are_the_cap_and_zero_outputs_are_equal():
    assert metrics_of([1.0, 2.0], [1.0, 2.0]) == Metrics(SQNR_CAP_DB, 1.0, 0.0, largest=2.0)
    assert metrics_of([0.0], [0.0]) == Metrics(None, 1.0, 0.0, constant=0.0, largest=0.0), "nothing was compared"
    assert metrics_of([3.0, 3.0], [3.0, 3.5]).constant == 3.0


def test_a_dead_output_is_no_match():
    dead = metrics_of([1.0, 2.0], [0.0, 0.0])
    assert dead.cosine == 0.0 and dead.sqnr_db == 0.0
    noise_from_nothing = metrics_of([0.0, 0.0], [1.0, 0.0])
    assert noise_from_nothing.sqnr_db is None and noise_from_nothing.max_abs == 1.0


def test_integers_and_booleans_are_compared_as_numbers():
    assert metrics_of(np.int64([1, 2]), np.int64([1, 3])).max_abs == 1.0
    assert metrics_of(np.array([True, False]), np.array([True, True])).max_abs == 1.0
    assert metrics_of(np.uint8([0]), np.uint8([255])).max_abs == 255.0, "no wrap-around in the difference"


def test_low_precision_does_not_lose_the_difference():
    reference = np.full(10_000, 1.0, np.float16)
    candidate = reference.copy()
    candidate[0] += np.float16(2**-10)
    # one difference of 2^-10 against 10,000 ones: 10 log10(10^4 * 2^20)
    assert metrics_of(reference, candidate).sqnr_db == pytest.approx(10 * np.log10(1e4 * 2**20))


def test_empty_and_scalar_outputs():
    assert metrics_of(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).sqnr_db is None
    hidden = metrics_of([-np.inf, -np.inf], [-np.inf, -np.inf])
    assert hidden.sqnr_db is None and hidden.constant is None, "no element was compared, and none was zero"
    assert metrics_of(np.float32(2.0), np.float32(1.0)).max_abs == 1.0


def test_another_shape_is_an_error_and_not_broadcast():
    with pytest.raises(ValueError, match="'scores': shape"):
        metrics_of(np.zeros((2, 1)), np.zeros((1, 2)), name="scores")


# -- classes ----------------------------------------------------------------------------------------------------


def test_top1_counts_rows_of_rank_two():
    reference = np.float32([[1, 2], [2, 1], [0, 5], [4, 0]])
    candidate = np.float32([[1, 2], [1, 2], [0, 9], [4, 0]])
    assert metrics_of(reference, candidate).top1_agreement == 0.75


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "classes"),
    [
        ("output", (2, 3), np.float32, True),
        ("output", (2, 1), np.float32, False),
        ("output", (2, 3), np.int64, False),
        ("features", (2, 3, 4), np.float32, False),
        ("logits", (2, 3, 4), np.float32, True),
        ("start_logits", (2, 3, 4), np.float16, True),
        ("output", (6,), np.float32, False),
    ],
)
def test_which_outputs_have_classes(name, shape, dtype, classes):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    assert metrics_of(values, values, name).top1_agreement == (1.0 if classes else None)


# -- NaN and infinity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_candidate_that_is_not_finite_is_the_worst(bad):
    found = metrics_of([1.0, 2.0], [1.0, bad])
    assert found.sqnr_db == -SQNR_CAP_DB and found.cosine == 0.0
    assert np.isfinite(found.max_abs) and found.max_abs > 1e300
    assert all(tolerance_of(precision).misses(found) for precision in Precision)


def test_infinities_and_nans_in_the_same_places_are_no_difference():
    masked = [1.0, -np.inf, np.nan, 2.0]
    assert metrics_of(masked, masked) == Metrics(SQNR_CAP_DB, 1.0, 0.0, largest=2.0)
    assert metrics_of([1.0, -np.inf], [1.5, -np.inf]).max_abs == 0.5
    assert metrics_of([np.inf], [-np.inf]).sqnr_db == -SQNR_CAP_DB
    assert metrics_of([np.nan], [1.0]).sqnr_db == -SQNR_CAP_DB


def test_figures_that_overflow_are_the_worst():
    found = metrics_of(np.float64([1e200, 1.0]), np.float64([-1e200, 1.0]))
    assert found.sqnr_db == -SQNR_CAP_DB and found.cosine == 0.0


def test_one_bad_batch_is_not_forgotten():
    comparison = OutputComparison("output")
    comparison.add(np.float32([1.0]), np.float32([np.nan]))
    comparison.add(np.float32([1.0]), np.float32([1.0]))
    assert comparison.metrics.sqnr_db == -SQNR_CAP_DB


# -- laws -------------------------------------------------------------------------------------------------------


@st.composite
def pair_of_batches(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 5)))
    pair = draw(arrays(np.float32, shape, elements=FLOATS)), draw(arrays(np.float32, shape, elements=FLOATS))
    cuts = draw(st.lists(st.integers(0, shape[0]), max_size=4))
    return *pair, sorted({0, shape[0], *cuts})


@given(pair_of_batches())
@settings(max_examples=60, deadline=None)
def test_streaming_in_any_pieces_equals_the_whole(case):
    reference, candidate, cuts = case
    streamed = OutputComparison("output")
    for start, end in itertools.pairwise(cuts):
        streamed.add(reference[start:end], candidate[start:end])
    whole, found = metrics_of(reference, candidate), streamed.metrics
    # sums of float64 in another order: relative error of some 1e-15, 1e-12 dB
    assert found.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)
    assert found.cosine == pytest.approx(whole.cosine, abs=1e-12)
    assert (found.max_abs, found.top1_agreement) == (whole.max_abs, whole.top1_agreement)


@given(pair_of_batches())
@settings(max_examples=60, deadline=None)
def test_metrics_match_a_direct_computation(case):
    reference, candidate, _ = case
    found = metrics_of(reference, candidate)
    ref, got = reference.astype(np.float64), candidate.astype(np.float64)
    signal, noise = np.sum(ref**2), np.sum((ref - got) ** 2)
    assert found.max_abs == np.abs(ref - got).max()
    assert found.top1_agreement == np.mean(ref.argmax(1) == got.argmax(1))
    if signal and noise:
        expected = np.clip(10 * np.log10(signal / noise), -SQNR_CAP_DB, SQNR_CAP_DB)
        assert found.sqnr_db == pytest.approx(expected, abs=1e-9)
    if signal and np.any(got):
        expected = np.sum(ref * got) / (np.linalg.norm(ref) * np.linalg.norm(got))
        assert found.cosine == pytest.approx(expected, abs=1e-9)


@given(arrays(np.float32, 8, elements=FLOATS), st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_sqnr_does_not_depend_on_the_unit(values, scale):
    values = values.astype(np.float64)
    first = metrics_of(values, values + 0.25)
    second = metrics_of(values * scale, (values + 0.25) * scale)
    # the products round by 1e-16 of up to 1e6, against a difference of 0.25: far below 1e-3 dB
    assert second.sqnr_db == pytest.approx(first.sqnr_db, abs=1e-3)


def test_worst_of_takes_the_worst_of_each_kind():
    worst = worst_of(iter([Metrics(30.0, 0.9, 1.0, 0.5), Metrics(20.0, 0.99, 2.0, None)]))
    assert worst == Metrics(20.0, 0.9, 2.0, 0.5)
    assert worst_of([Metrics(1.0, 1.0, 0.0)]).top1_agreement is None


# -- gate -------------------------------------------------------------------------------------------------------


def test_tolerance_says_which_figures_miss():
    gate = Tolerance(min_sqnr_db=20.0, min_cosine=0.99, min_top1_agreement=0.9)
    assert gate.misses(Metrics(20.0, 0.99, 5.0, 0.9)) == ()
    misses = gate.misses(Metrics(12.34, 0.5, 5.0, 0.25))
    assert misses == (
        "SQNR 12.34 dB is below 20 dB",
        "cosine 0.5 is below 0.99",
        "top-1 agreement 0.25 is below 0.9",
    )


def test_what_is_not_gated_or_not_there_does_not_miss():
    assert Tolerance().misses(Metrics(-200.0, 0.0, 9.0, 0.0)) == ()
    assert Tolerance(min_top1_agreement=0.9).misses(Metrics(50.0, 1.0, 0.0, None)) == ()


def test_nan_never_passes():
    assert len(Tolerance(min_sqnr_db=0.0, min_cosine=0.0).misses(Metrics(np.nan, np.nan, 0.0))) == 2


def test_every_precision_has_a_default_gate():
    gates = [tolerance_of(precision) for precision in Precision]
    assert all(gate.min_sqnr_db and gate.min_sqnr_db > 10.0 for gate in gates)


@pytest.mark.parametrize(
    ("reference", "artifact", "passed"),
    [(0.9, 0.89, True), (0.9, 0.95, True), (0.9, 0.88, False), (0.9, np.nan, False)],
)
def test_task_metric(reference, artifact, passed):
    assert TaskMetric(reference, artifact, max_drop=0.0100001).passed is passed


def test_a_task_metric_that_falls_fails_the_report(toy):
    report = toy.make_parity()
    fine = report.with_metric(TaskMetric(0.9, 0.9, 0.01))
    assert fine.passed and fine.metric.drop == 0.0
    failed = report.with_metric(TaskMetric(0.9, 0.5, 0.01))
    assert not failed.passed and "from 0.9 to 0.5" in failed.failures[0]
    both = replace(report, failures=("SQNR",), passed=False).with_metric(TaskMetric(0.9, 0.9, 0.01))
    assert not both.passed and both.failures == ("SQNR",)


# -- chain ------------------------------------------------------------------------------------------------------

SPECS = (TensorSpec("x", ("n",), "float32"),), (TensorSpec("y", ("n",), "float32"),)


def adding(offset: float, calls: list[float] | None = None) -> FunctionSession:
    def run(feeds):
        if calls is not None:
            calls.append(offset)
        return {"y": feeds["x"] + np.float32(offset)}

    return FunctionSession(run, *SPECS)


def test_chain_compares_neighbours_and_the_ends():
    calls: list[float] = []
    stages = [
        Stage("float", adding(0.0, calls), Evidence.REFERENCE),
        Stage("simulated", adding(1.0, calls), Evidence.REFERENCE),
        Stage("artifact", adding(3.0, calls), Evidence.EMULATOR),
    ]
    links, count = compare_chain(stages, ({"x": np.float32([value, 8.0])} for value in (1.0, 2.0)))
    assert count == 2 and calls == [0.0, 1.0, 3.0] * 2, "every stage runs once per sample"
    assert [(link.reference, link.candidate, link.worst.max_abs) for link in links] == [
        ("float", "simulated", 1.0),
        ("simulated", "artifact", 2.0),
        ("float", "artifact", 3.0),
    ]
    assert links[-1].evidence is Evidence.EMULATOR
    assert links[-1].outputs["y"] == links[-1].worst


def test_two_stages_are_one_link():
    links, _ = compare_chain(
        [Stage("a", adding(0.0), Evidence.REFERENCE), Stage("b", adding(0.5), Evidence.DEVICE)],
        [{"x": np.ones(2, np.float32)}],
    )
    assert len(links) == 1 and links[0].worst.max_abs == 0.5
    assert compare_sessions(adding(0.0), adding(0.5), [{"x": np.ones(2, np.float32)}]).worst == links[0].worst


def test_nothing_but_nan_proves_nothing():
    comparison = OutputComparison("output")
    comparison.add(np.full((2, 3), np.nan), np.full((2, 3), np.nan))
    assert comparison.metrics.sqnr_db == -SQNR_CAP_DB


# -- margins ----------------------------------------------------------------------------------------------------


def test_a_cosine_counts_in_db_as_the_noise_that_it_is_of() -> None:
    noise = 10 ** (-20 / 10)  # at right angles to the reference
    assert margins.of_cosine((1.0 + noise) ** -0.5) == pytest.approx(20.0)
    assert margins.of_cosine(1.0) == SQNR_CAP_DB
    assert margins.of_cosine(0.0) == margins.of_cosine(-0.5) == margins.of_cosine(np.nan) == -SQNR_CAP_DB


def test_a_share_counts_in_db_as_the_amplitude_that_makes_so_many_differ() -> None:
    assert margins.of_share(0.99) == pytest.approx(40.0)
    assert margins.margin_db(0.97, 0.99, margins.of_share) == pytest.approx(-9.54, abs=0.01)
    assert margins.margin_db(0.9, 1.0, margins.of_share) == pytest.approx(-40.0), "all equal is no infinite distance"
    assert margins.margin_db(0.9999, 1.0, margins.of_share) < 0.0 == margins.margin_db(1.0, 1.0, margins.of_share)
    assert margins.of_share(np.nan) == -SQNR_CAP_DB


@given(
    st.sampled_from([margins.of_sqnr, margins.of_cosine, margins.of_share, margins.of_size]),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_a_margin_is_below_nothing_exactly_where_the_gate_is_missed(in_decibels, value, gate):
    assert (margins.margin_db(value, gate, in_decibels) < 0.0) == (value < gate)


@given(arrays(np.float32, (4, 3), elements=st.floats(-4, 4, width=32)), st.floats(0.0, 3.0), st.floats(-20, 60))
@settings(max_examples=60)
def test_the_margin_of_a_comparison_agrees_with_its_words(reference, off, gate):
    want = FunctionSession(lambda feeds: {"output": reference}, [], [TensorSpec("output", (4, 3), "float32")])
    got = FunctionSession(
        lambda feeds: {"output": reference + np.float32(off)}, [], [TensorSpec("output", (4, 3), "float32")]
    )
    link = compare_sessions(want, got, [{}])
    for tolerance in (Tolerance(gate), Tolerance(gate, 0.99), Tolerance(min_top1_agreement=0.9), Tolerance()):
        assert (margin_of(link, tolerance) < 0.0) == bool(failures_of(link, tolerance))
    assert margin_of(link, Tolerance()) == np.inf
