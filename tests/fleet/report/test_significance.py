"""The tests behind a finding, against distributions counted by hand and by drawing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deploykit_fleet.report import significance
from deploykit_fleet.report.significance import FEWEST, LEVEL, holm, p_lower, paired_shift, shift_of

from .conftest import runs


def test_the_precedence_test_counts_all_orders() -> None:
    """Of 4 bounds and 4 values in every order: how many have at most k values before the second bound."""
    bound, rank = 4, 2  # a half, because so few are looked at whole
    orders = [set(chosen) for chosen in itertools.combinations(range(8), bound)]
    for before in range(5):
        few = sum(_values_before(order, rank) <= before for order in orders)
        values = np.array([0.0] * before + [9.0] * (4 - before))
        found = significance._precedence(np.array([1.0, 2.0, 3.0, 4.0]), values)
        assert found == pytest.approx(few / len(orders))


def _values_before(bounds: set[int], rank: int) -> int:
    second = sorted(bounds)[rank - 1]
    return sum(place not in bounds for place in range(second))


def test_a_tenth_more_is_found_and_nothing_is_not() -> None:
    for seed in range(20):
        old, same, slower = runs(seed), runs(seed + 100), [1.1 * each for each in runs(seed + 200)]
        assert shift_of(old, same).p_value > LEVEL
        found = shift_of(old, slower)
        assert found.p_value < LEVEL / 100 and found.p_more < found.p_less
        assert found.low < found.estimate < found.high and found.estimate == pytest.approx(0.1, abs=0.02)
        assert shift_of(slower, old).p_less < LEVEL / 100


def test_a_shift_within_the_margin_is_no_change_however_long_it_is_measured() -> None:
    assert shift_of(runs(1, count=2000), [1.03 * each for each in runs(2, count=2000)]).p_value > LEVEL


def test_in_turns_less_is_found() -> None:
    drift = np.linspace(1.0, 1.5, 100)  # a machine that slows down while both are measured
    old, new = drift * runs(1), drift * runs(2)
    assert paired_shift(old, new).p_value > LEVEL
    found = paired_shift(old, 1.05 * new)
    assert found.p_value < LEVEL and found.paired and found.low <= found.estimate <= found.high


@pytest.mark.parametrize("compare", [shift_of, paired_shift])
def test_few_runs_or_no_time_are_not_tested(compare) -> None:
    assert compare(runs(1, count=FEWEST - 1), runs(2)) is None
    assert compare(runs(1), (0.0,) * 100) is None
    assert compare((), ()) is None


def test_rank_sums_against_drawing() -> None:
    """p-values of equal distributions are uniform: at most a twentieth lie below 0.05, give or take."""
    generator = np.random.default_rng(0)
    p_values = [p_lower(generator.random(16), generator.random(16)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.08
    assert p_lower(range(20, 40), range(20)) < 1e-6
    assert p_lower(range(20), range(20, 40)) > 0.99
    assert p_lower([1.0] * 20, [1.0] * 20) > 0.4
    assert p_lower([1.0], [2.0]) is None


def test_holm_against_the_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
