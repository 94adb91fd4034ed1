"""Ranges from few samples have room for what further samples show, where the statistics know of any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit_calibration.statistics import TensorStatistics
from deploykit_calibration.table import CalibrationTable
from deploykit_calibration.unseen import HORIZON, MOST, widened

ROWS = np.random.default_rng(0).normal(size=(HORIZON, 32)).astype(np.float32)


def table(values: np.ndarray, samples: int) -> CalibrationTable:
    return CalibrationTable("m", samples=samples, statistics={"x": TensorStatistics.of(values)})


@pytest.mark.parametrize("samples", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fresh_values_are_nearer_to_the_range_than_to_what_was_seen(samples: int, symmetric: bool) -> None:
    seen, reached = ROWS[:samples], np.abs(ROWS).max()
    lo, hi = table(seen, samples).range("x", symmetric=symmetric)
    assert max(-lo, hi) > np.abs(seen).max()
    clipped = np.abs(ROWS - np.clip(ROWS, lo, hi)).sum()
    assert clipped < 0.35 * np.abs(ROWS - np.clip(ROWS, seen.min(), seen.max())).sum()
    assert max(-lo, hi) < 1.5 * reached


@pytest.mark.parametrize("samples", [0, HORIZON, 10 * HORIZON])
def test_enough_samples_and_an_unknown_number_change_nothing(samples: int) -> None:
    assert widened(TensorStatistics.of(ROWS), (-2.0, 3.0), samples, symmetric=False) == (-2.0, 3.0)


@pytest.mark.parametrize("method", ["minmax", "mse", "percentile", "percentile:99.9", "entropy"])
def test_methods_with_a_definition_of_their_own_stay(method: str) -> None:
    few, many = (table(ROWS[:4], samples).range("x", method=method, symmetric=False) for samples in (4, HORIZON))
    assert few == many


@pytest.mark.parametrize("values", [np.full(64, 3.0), np.zeros(64), np.repeat([0.0, 6.0], 500), np.float32(2.0)])
def test_a_bound_that_is_often_reached_stays(values: np.ndarray) -> None:
    """Constants, ReLU6, saturated images, and a single value: no excess is known."""
    high = float(np.max(values))
    found = widened(TensorStatistics.of(np.asarray(values, np.float32)), (0.0, high), 1, symmetric=False)
    assert found == (0.0, pytest.approx(high, rel=1e-3))


def test_what_is_never_negative_stays_so() -> None:
    lo, hi = table(np.abs(ROWS[:4]), 4).range("x", symmetric=False)
    assert lo == 0.0 and hi > np.abs(ROWS[:4]).max()


def test_merged_shards_count_together() -> None:
    shards = [table(rows, 8) for rows in ROWS[:32].reshape(4, 8, 32)]
    merged = shards[0].merge(shards[1]).merge(shards[2]).merge(shards[3])
    assert merged.range("x", symmetric=True) == table(ROWS[:32], 32).range("x", symmetric=True)


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.integers(1, 300),
    st.booleans(),
)
def test_a_range_is_finite_holds_what_was_chosen_and_is_bounded(x: np.ndarray, samples: int, symmetric: bool) -> None:
    many, few = (table(x, n).range("x", symmetric=symmetric) for n in (HORIZON, samples))
    assert np.isfinite(few).all() and few[0] <= many[0] <= 0.0 <= many[1] <= few[1]
    assert few[0] >= MOST * many[0] and few[1] <= MOST * many[1]
    assert not symmetric or -few[0] == few[1]
