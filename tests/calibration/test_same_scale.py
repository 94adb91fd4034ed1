"""Groups are an equivalence: the order of joins does not matter."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from deploykit_calibration.same_scale import Groups, union_range

_JOINS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=12)


def _partition(joins: list[list[int]]) -> set[frozenset[int]]:
    groups = Groups[int]()
    for members in joins:
        groups.join(members)
    return {frozenset(group) for group in groups}


@given(_JOINS, st.randoms())
def test_groups_do_not_depend_on_the_order_of_joins(joins: list[list[int]], shuffler: random.Random) -> None:
    shuffled = joins.copy()
    shuffler.shuffle(shuffled)
    assert _partition(joins) == _partition(shuffled)


@given(_JOINS)
def test_joined_members_are_together_and_every_member_is_in_one_group(joins: list[list[int]]) -> None:
    partition = _partition(joins)
    assert sorted(member for group in partition for member in group) == sorted({m for join in joins for m in join})
    assert all(any(set(join) <= group for group in partition) for join in joins)


def test_members_keep_the_order_in_which_they_came() -> None:
    groups = Groups[str]()
    groups.find("c")
    groups.join(["b", "a"])
    groups.join(["c", "a"])
    assert list(groups) == [("c", "b", "a")]


def test_union_range_holds_all() -> None:
    assert union_range([(-1.0, 2.0), (-3.0, 0.0)]) == (-3.0, 2.0)
