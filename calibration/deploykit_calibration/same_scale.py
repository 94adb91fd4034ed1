"""Groups of tensors that must share one scale, as disjoint sets (union-find)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Groups(Generic[T]):
    """Disjoint sets over members that are added by `join`; order of first mention is kept."""

    def __init__(self) -> None:
        self._parent: dict[T, T] = {}

    def find(self, member: T) -> T:
        """The representative of a member's group; a new member is a group of its own."""
        self._parent.setdefault(member, member)
        root = member
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[member] != root:
            self._parent[member], member = root, self._parent[member]
        return root

    def join(self, members: Iterable[T]) -> None:
        """Make one group of the groups of all `members`."""
        roots = [self.find(member) for member in members]
        for root in roots[1:]:
            self._parent[self.find(root)] = self.find(roots[0])

    def __iter__(self) -> Iterator[tuple[T, ...]]:
        groups: dict[T, list[T]] = {}
        for member in self._parent:
            groups.setdefault(self.find(member), []).append(member)
        return iter(tuple(group) for group in groups.values())


def union_range(ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The smallest range that holds all of `ranges`."""
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)
