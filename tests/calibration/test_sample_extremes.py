"""Extremes of single samples: merging is exact, however the samples were split, and made-up ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit_calibration.sample_extremes import KEPT, SampleExtremes

pairs = st.lists(st.tuples(st.floats(-1e3, 0.0), st.floats(0.0, 1e3)), max_size=3 * KEPT)


def extremes(found: list[tuple[float, float]]) -> SampleExtremes:
    return SampleExtremes.of([low for low, _ in found], [high for _, high in found])


@given(pairs, pairs, pairs)
def test_merging_is_exact_associative_and_commutative(a: Any, b: Any, c: Any) -> None:
    one, two, three = (extremes(found) for found in (a, b, c))
    assert one.merge(two) == two.merge(one) == extremes([*b, *a])
    assert one.merge(two).merge(three) == one.merge(two.merge(three)) == extremes([*a, *b, *c])
    assert one.merge(SampleExtremes()) == one


@given(pairs)
def test_the_outermost_are_kept_in_order(found: list[tuple[float, float]]) -> None:
    kept = extremes(found)
    assert kept.count == len(found)
    assert kept.highest == tuple(sorted((high + 0.0 for _, high in found), reverse=True)[:KEPT])
    assert kept.lowest == tuple(sorted(low + 0.0 for low, _ in found)[:KEPT])


@pytest.mark.parametrize(
    "given_",
    [
        (2, (1.0,), (1.0,)),
        (1, (1.0, 2.0), (1.0,)),
        (-1, (), ()),
        (True, (1.0,), (1.0,)),
        (2**62, (0.0,) * KEPT, (0.0,) * KEPT),
        (2, (2.0, 1.0), (3.0, 2.0)),
        (2, (1.0, 2.0), (2.0, 3.0)),
        (1, (float("nan"),), (1.0,)),
        (1, (0.0,), (float("inf"),)),
    ],
    ids=str,
)
def test_what_no_samples_can_have_shown_is_refused(given_: Any) -> None:
    with pytest.raises(ValueError, match=r"extremes? "):
        SampleExtremes(*given_)
