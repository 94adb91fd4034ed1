"""Which of two candidates is to be preferred."""

from __future__ import annotations

from dataclasses import replace

from deploykit.judge.parity import TaskMetric
from deploykit_tuning.fall import NO_FALL, Fall
from deploykit_tuning.goal import better, scored
from deploykit_tuning.ladder import Figures


def missed(sqnr_db: float, metric: float, short: float = 0.0) -> Figures:
    return Figures(False, ("SQNR is below 40 dB",), sqnr_db - 40.0, sqnr_db, metric=metric, short=short)


def test_of_two_that_keep_the_metric_the_one_nearer_to_the_goal_is_better() -> None:
    assert better(missed(39.0, metric=0.984), missed(35.0, metric=0.986))


def test_a_metric_that_is_missed_decides_before_the_sqnr() -> None:
    assert better(missed(30.0, metric=0.97, short=0.01), missed(39.0, metric=0.95, short=0.03))
    assert better(missed(30.0, metric=0.98), missed(39.0, metric=0.97, short=0.01))


def test_what_meets_the_goal_is_better_than_what_is_near_and_the_cheaper_of_two_is() -> None:
    dear, cheap = (Figures(True, (), 1.0, 45.0, predicted_cost=cost) for cost in (9.0, 2.0))
    assert better(dear, missed(39.9, metric=0.99)) and better(cheap, dear)


def test_a_gain_of_the_draw_is_none_where_something_must_be_gained() -> None:
    assert better(missed(30.2, metric=0.98), missed(30.0, metric=0.98))
    assert not better(missed(30.2, metric=0.98), missed(30.0, metric=0.98), worth_db=0.3)
    assert better(missed(30.4, metric=0.98), missed(30.0, metric=0.98), worth_db=0.3)
    assert better(missed(30.0, metric=0.98), missed(30.0, metric=0.97, short=0.01), worth_db=0.3), "the task decides"
    met = Figures(True, (), 0.1, 40.1)
    assert better(met, missed(39.9, metric=0.98), worth_db=0.3), "what meets the goal needs no other worth"


def test_the_margin_of_a_metric_that_is_missed_is_below_nothing() -> None:
    found = Figures(True, (), 3.0, 43.0)
    kept = scored(found, TaskMetric(0.9, 0.89, 0.02))
    assert kept.met and kept.margin == kept.margin_share and abs(kept.margin_share - 0.5) < 1e-9 and kept.short == 0.0
    lost = scored(found, TaskMetric(0.9, 0.85, 0.02))
    assert not lost.met and lost.margin < 0.0 and lost.margin_db == 3.0 and lost.short > 0.0
    assert scored(found, TaskMetric(0.9, 0.9 - 1e-12, 0.0)).margin < 0.0, "a miss by next to nothing, too"
    assert scored(found, TaskMetric(0.9, 0.9, 0.0)).margin == 0.0
    assert Figures(True, (), None, 43.0).margin == float("inf")


def test_what_an_artifact_lost_is_expected_of_the_next() -> None:
    simulated, artifact = Figures(True, (), 1.5, 41.5), Figures(False, ("SQNR",), -0.5, 39.7)
    fall = Fall.between(simulated, artifact)
    assert (fall.margin_db, fall.margin_share) == (2.0, 0.0) and abs(fall.sqnr_db - 1.8) < 1e-9
    less, enough = fall.expected(replace(simulated, margin_db=1.9)), fall.expected(replace(simulated, margin_db=2.0))
    assert not less.met and less.margin < 0.0 and "expected to miss: the last one fell 2 dB short" in less.failures[0]
    assert enough.met and enough.margin == 0.0 and not enough.failures
    assert NO_FALL.expected(simulated) == simulated
    assert fall.expected(artifact).failures == ("SQNR",), "what is missed already says why"
    assert Fall.between(artifact, simulated) == NO_FALL, "a gain is not counted on"
