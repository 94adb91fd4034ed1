"""Laws of `TensorStatistics`: merging is exact, associative and commutative, with an identity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit_calibration.sample_extremes import SampleExtremes
from deploykit_calibration.statistics import (
    BINS,
    HALF_BINS,
    MIN_EXPONENT,
    StatisticsBuilder,
    TensorStatistics,
    bin_counts,
    bin_exponent,
    coarsen,
)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(0, 40), elements=floats)


@given(arrays, arrays, arrays)
def test_merge_is_associative(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    x, y, z = map(TensorStatistics.of, (a, b, c))
    assert x.merge(y).merge(z) == x.merge(y.merge(z))


@given(arrays, arrays)
def test_merge_is_commutative(a: np.ndarray, b: np.ndarray) -> None:
    x, y = map(TensorStatistics.of, (a, b))
    assert x.merge(y) == y.merge(x)


@given(arrays)
def test_the_empty_statistics_are_the_identity(a: np.ndarray) -> None:
    x = TensorStatistics.of(a)
    assert x.merge(TensorStatistics.empty()) == x
    assert TensorStatistics.empty().merge(x) == x


@given(arrays, arrays)
def test_merging_shards_is_exactly_seeing_all_at_once(a: np.ndarray, b: np.ndarray) -> None:
    merged = TensorStatistics.of(a).merge(TensorStatistics.of(b))
    assert merged == TensorStatistics.of(np.concatenate([a, b]), batches=2)


@given(arrays, arrays)
def test_the_builder_agrees_with_merge(a: np.ndarray, b: np.ndarray) -> None:
    builder = StatisticsBuilder()
    for part in (a, b):
        low, high = (float(part.min()), float(part.max())) if part.size else (np.inf, -np.inf)
        builder.add(low, high, part.size, part, samples=SampleExtremes.of(part.tolist(), part.tolist()))
    assert builder.build() == TensorStatistics.of(a).merge(TensorStatistics.of(b))


@given(arrays.filter(len))
def test_every_value_lies_in_its_bin_and_nothing_is_lost(a: np.ndarray) -> None:
    s = TensorStatistics.of(a)
    edges = s.bin_edges()
    expected = np.histogram(a.astype(np.float64), bins=edges)[0]
    assert s.sampled == a.size
    # np.histogram closes the last bin; ours never reaches it.
    np.testing.assert_array_equal(s.histogram, expected)
    assert s.minimum == a.min() and s.maximum == a.max()
    assert s.zeros == np.count_nonzero(a == 0)


def test_zero_is_a_bin_edge_so_signs_never_share_a_bin() -> None:
    s = TensorStatistics.of(np.array([-1e-30, 0.0, 1e-30, 1.0], dtype=np.float32))
    assert s.histogram[HALF_BINS - 1] == 1
    assert s.histogram[HALF_BINS] == 2


def test_the_width_depends_on_the_extremes_alone() -> None:
    assert bin_exponent(0.0) == MIN_EXPONENT
    assert 2.0 ** bin_exponent(1.0) * HALF_BINS == 2.0  # 1.0 itself must fit below the upper edge
    assert 2.0 ** bin_exponent(0.999) * HALF_BINS == 1.0
    assert bin_exponent(float(np.finfo(np.float32).smallest_subnormal)) >= MIN_EXPONENT


@pytest.mark.parametrize("steps", [0, 1, 5, 11, 12, 40])
def test_coarsening_is_counting_with_wider_bins(steps: int) -> None:
    values = np.random.default_rng(0).uniform(-2, 2, 5000)
    np.testing.assert_array_equal(coarsen(bin_counts(values, -10), steps), bin_counts(values, -10 + steps))


def test_nonfinite_values_are_counted_and_left_out() -> None:
    s = TensorStatistics.of(np.array([1.0, -np.inf, np.nan, 2.0], dtype=np.float32))
    assert (s.count, s.nonfinite, s.minimum, s.maximum) == (2, 2, 1.0, 2.0)


def test_negative_zero_is_zero() -> None:
    s = TensorStatistics.of(np.array([-0.0], dtype=np.float32))
    assert s == TensorStatistics.of(np.array([0.0], dtype=np.float32))
    assert np.copysign(1.0, s.minimum) == 1.0


def test_statistics_are_frozen_values() -> None:
    s = TensorStatistics.of(np.ones(3, dtype=np.float32))
    with pytest.raises(ValueError, match="read-only"):
        s.histogram[0] = 1
    with pytest.raises(AttributeError):
        s.count = 4  # type: ignore[misc]
    assert hash(s) == hash(TensorStatistics.of(np.ones(3, dtype=np.float32)))
    assert s != "statistics"
    assert s.histogram.shape == (BINS,)
