"""Which of two candidates is to be preferred."""

from __future__ import annotations

from deploykit_tuning.goal import better
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
