"""What samples tell of others: the interval covers what it says it does, and the gate takes its lower end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deploykit.contract.decibels import sqnr_db
from deploykit.contract.precision import Evidence
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import Feeds, TensorSpec
from deploykit.judge.parity import LayerParity, Metrics, OutputComparison, Tolerance, worst_of
from deploykit.judge.spread import CONFIDENCE, KEPT, Spread, spread_of
from deploykit.judge.verdict import Validation, judge

SPEC = (TensorSpec("x", (1, 8), "float32"),)


def test_the_interval_holds_the_figure_of_all_other_samples_about_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(3), 0
    for _ in range(200):
        found = spread_of(generator.chisquare(8, 16), generator.chisquare(8, 16) / 1000)
        assert found is not None
        held += found.low_db <= 30.0 <= found.high_db
    assert CONFIDENCE - 0.12 < held / 200 < CONFIDENCE + 0.06  # of few samples, the bootstrap's interval is too narrow


def test_the_same_samples_give_the_same_interval() -> None:
    assert spread_of([1, 2, 3], [0.1, 0.2, 0.1]) == spread_of([1, 2, 3], [0.1, 0.2, 0.1])


def test_samples_that_are_alike_leave_no_room() -> None:
    found = spread_of([4.0] * 5, [0.004] * 5)
    assert found is not None and found.low_db == pytest.approx(found.high_db) == pytest.approx(30.0)
    assert found.sample_db == (30.0,) * 5 and found.median_db == 30.0


def test_a_heavy_tail_is_seen_and_lowers_the_end() -> None:
    found = spread_of([1.0] * 16, [1e-4] * 15 + [0.1])
    assert found is not None
    assert found.sample_db[:2] == (10.0, 40.0) and found.median_db == 40.0
    assert found.low_db < sqnr_db(16.0, 0.1015) < found.high_db


@pytest.mark.parametrize(
    ("signal", "noise"), [([], []), ([1.0], [0.1]), ([0.0, 0.0], [1.0, 2.0]), ([1.0, 1.0], [0.0, 0.0])]
)
def test_one_sample_no_signal_and_no_difference_tell_nothing(signal: list[float], noise: list[float]) -> None:
    assert spread_of(signal, noise) is None


def test_many_samples_keep_the_lowest() -> None:
    found = spread_of([1.0] * 300, [0.1] * 10 + [0.01] * 290)
    assert found is not None and found.samples == 300 and len(found.sample_db) == KEPT
    assert found.sample_db[:11] == (10.0,) * 10 + (20.0,)


def test_rows_of_a_batch_are_samples_where_axis_0_counts_them() -> None:
    wanted = np.arange(1.0, 13.0, dtype=np.float32).reshape(4, 3)
    for batch, samples in ((True, 8), (False, 2)):
        comparison = OutputComparison("y", batch=batch)
        for off in (0.01, 0.02):
            comparison.add(wanted, wanted + np.float32(off))
        spread = comparison.metrics.spread
        assert spread is not None and spread.samples == samples


def test_the_worst_of_several_outputs_is_that_of_the_lowest_end() -> None:
    one, other = (Spread(low, 40.0, 4, (low,)) for low in (30.0, 20.0))
    metrics = Metrics(35.0, 1.0, 0.1)
    assert worst_of([replace(metrics, spread=one), replace(metrics, spread=other), metrics]).spread is other


def test_the_gate_takes_the_lower_end_of_what_is_expected_of_others_only() -> None:
    metrics = Metrics(20.0, 1.0, 0.1, spread=Spread(15.0, 25.0, 4, (15.0,)))
    gate = Tolerance(min_sqnr_db=18.0)
    assert gate.misses(metrics) == ()
    assert gate.misses(metrics, of_others=True) == (
        "SQNR to expect of other samples (20 dB on these 4) 15 dB is below 18 dB",
    )
    assert Tolerance(min_sqnr_db=15.0).misses(metrics, of_others=True) == ()


def _validation(held_out: float, seen: float) -> Validation:
    """Sessions that differ by what the feed's second half says."""
    reference = FunctionSession(lambda feeds: {"x": feeds["x"] * np.float32([1, 1, 1, 1, 0, 0, 0, 0])}, SPEC, SPEC)
    draw = np.random.default_rng(0)

    def feeds(noise: float, count: int) -> list[Feeds]:
        values = [np.concatenate([draw.normal(size=4), noise * draw.normal(size=4)]) for _ in range(count)]
        return [{"x": value[None].astype(np.float32)} for value in values]

    others = {"seen by calibration": feeds(seen, 12), "example inputs": feeds(9.0, 1)}
    gate = Tolerance(min_sqnr_db=10.0)
    return Validation(reference, feeds(held_out, 4), "held out", gate, others=others, seen="seen by calibration")


@pytest.mark.parametrize(("held_out", "seen"), [(0.2, 0.01), (0.01, 0.02)])
def test_the_claim_is_that_of_held_out_samples_alone(held_out: float, seen: float) -> None:
    """Whichever fare better: what seen samples reach says nothing of samples that their ranges clip."""
    report = judge(FunctionSession(lambda feeds: feeds, SPEC, SPEC), Evidence.DEVICE, _validation(held_out, seen))
    assert report.passed and (report.samples, report.data) == (4, "held out")
    assert report.sqnr_db == pytest.approx(sqnr_db(1.0, held_out**2), abs=3.0)
    alone = {other.data: other for other in report.other_samples}
    assert alone["seen by calibration"].samples == 12
    assert alone["seen by calibration"].worst.sqnr_db == pytest.approx(sqnr_db(1.0, seen**2), abs=3.0)
    assert list(alone) == ["seen by calibration", "example inputs"]


def test_seen_samples_that_miss_the_gate_fail_the_verdict() -> None:
    report = judge(FunctionSession(lambda feeds: feeds, SPEC, SPEC), Evidence.DEVICE, _validation(0.01, 0.9))
    assert not report.passed and report.sqnr_db is not None and report.sqnr_db > 30.0
    assert report.failures[0].startswith("SQNR ") and report.failures[0].endswith("on seen by calibration")


def test_what_is_foreseen_bounds_what_is_expected_of_others() -> None:
    """A simulation that clips as further samples will be clipped lowers the end that is gated, and no figure."""

    class Foreseen:
        def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
            return {"x": feeds["x"] * np.float32([1, 1, 1, 1, 0, 0, 0, 0]) * np.float32(0.5)}

        def compare_layers(self, samples: object) -> list[LayerParity]:
            return []

    validation = _validation(0.01, 0.01)
    session = FunctionSession(lambda feeds: feeds, SPEC, SPEC)
    plain = judge(session, Evidence.DEVICE, validation)
    report = judge(session, Evidence.DEVICE, replace(validation, foreseen=Foreseen()))
    assert plain.passed and not report.passed and report.sqnr_db == plain.sqnr_db
    assert report.spread is not None and report.spread.low_db == pytest.approx(sqnr_db(1.0, 0.25), abs=0.01)
    assert report.failures[0].startswith("SQNR to expect of other samples")
