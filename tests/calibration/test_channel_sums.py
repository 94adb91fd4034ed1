"""Sums of channels in fixed point: merging must not depend on any order."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.contract.errors import CalibrationError
from deploykit_calibration.channel_sums import FRACTION_BITS, ChannelSums, ChannelSumsBuilder

SUMS = st.builds(
    ChannelSums.of, hnp.arrays(np.float64, 3, elements=st.floats(-1e9, 1e9, allow_nan=False)), st.integers(1, 10**6)
)


def exact(sums: ChannelSums) -> list[Fraction]:
    return [
        int(whole) + Fraction(int(fraction), 1 << FRACTION_BITS)
        for whole, fraction in zip(sums.whole, sums.fraction, strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(SUMS, SUMS, SUMS)
def test_merge_is_exact_associative_and_commutative(a: ChannelSums, b: ChannelSums, c: ChannelSums) -> None:
    merged = a.merge(b).merge(c)
    assert merged == a.merge(b.merge(c)) == c.merge(a).merge(b)
    assert hash(merged) == hash(a.merge(b.merge(c)))
    assert exact(merged) == [sum(parts) for parts in zip(exact(a), exact(b), exact(c), strict=True)]
    assert merged.count == a.count + b.count + c.count


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, 4, elements=st.floats(-1e9, 1e9, allow_nan=False)), st.integers(1, 10**6))
def test_the_mean_is_the_sum_by_the_count(sums: np.ndarray, count: int) -> None:
    # A fraction is cut off after 40 bits.
    np.testing.assert_allclose(ChannelSums.of(sums, count).mean, sums / count, rtol=1e-15, atol=2.0**-40 / count)


def test_a_sum_by_hand() -> None:
    sums = ChannelSums.of(np.array([-0.25, 3.5]), 2)
    assert (sums.whole.tolist(), [f / 2**FRACTION_BITS for f in sums.fraction.tolist()]) == ([-1, 3], [0.75, 0.5])
    assert sums.mean.tolist() == [-0.125, 1.75]


@settings(max_examples=50, deadline=None)
@given(st.lists(hnp.arrays(np.float64, 3, elements=st.floats(-1e9, 1e9, allow_nan=False)), min_size=1, max_size=5))
def test_the_builder_agrees_with_merge(batches: list[np.ndarray]) -> None:
    builder = ChannelSumsBuilder(3)
    for sums in batches:
        builder.add(sums, 2)
    assert builder.build() == reduce(ChannelSums.merge, (ChannelSums.of(sums, 2) for sums in batches))


def test_infinities_and_what_no_network_computes_are_left_out() -> None:
    builder = ChannelSumsBuilder(2)
    for bad in (np.inf, np.nan, -1e30):
        builder.add(np.array([1.0, bad]), 1)
    assert builder.build() is None
    builder.add(np.array([1.0, 2.0]), 1)
    assert builder.build() == ChannelSums.of(np.array([1.0, 2.0]), 1)


GOOD = ChannelSums.of(np.array([1.5, -2.5]), 3)


@pytest.mark.parametrize(
    "damage",
    [
        {"count": 0},
        {"count": -5},
        {"whole": np.zeros(2)},
        {"whole": np.zeros(3, np.int64)},
        {"whole": np.full(2, np.iinfo(np.int64).max)},
        {"fraction": np.array([-1, 0])},
        {"fraction": np.array([0, 1 << FRACTION_BITS])},
        {"whole": np.zeros(0, np.int64), "fraction": np.zeros(0, np.int64)},
    ],
    ids=str,
)
def test_what_no_pass_can_have_summed_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (loading a table says where)
        replace(GOOD, **damage)


def test_sums_of_other_layers_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="sums of 2 and of 1 channels"):
        GOOD.merge(ChannelSums.of(np.zeros(1), 3))
