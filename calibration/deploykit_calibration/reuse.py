"""What several candidates of a search have in common is computed once, while the search runs.

A candidate keeps a few more layers in float and is otherwise the same: its rounded weights, its channel scales are
those of the last one where they follow from the same things. A result is known by everything that it follows from, and
never by what it looks like; outside of a search nothing is kept. It never says that a result is the same: who calls
names all that it depends on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_Value = TypeVar("_Value")

_KEPT = 2
"""Results of one thing: that of what the search stands on, and that of its last candidate. Each may be a weight."""


class Shelf:
    """Results by what they are of, and then by what they follow from; the last few of each."""

    def __init__(self) -> None:
        self._results: dict[Hashable, OrderedDict[Hashable, tuple[Any, Any]]] = {}

    def once(self, of: Hashable, key: Hashable, make: Callable[[], _Value], held: object) -> _Value:
        """The result that is there, or that is made now."""
        known = self._results.setdefault(of, OrderedDict())
        if key not in known:
            known[key] = (make(), held)
        known.move_to_end(key)
        while len(known) > _KEPT:
            known.popitem(last=False)
        value: _Value = known[key][0]
        return value


_shelf: ContextVar[Shelf | None] = ContextVar("shelf", default=None)


@contextmanager
def reusing() -> Iterator[None]:
    """While this lasts, `once` remembers; blocks within blocks share what the outer one has."""
    token = _shelf.set(_shelf.get() or Shelf())
    try:
        yield
    finally:
        _shelf.reset(token)


def once(of: Hashable, key: Hashable, make: Callable[[], _Value], *, held: object = None) -> _Value:
    """What `make` gives, or gave for the same key before.

    Args:
        of: what the result is of, such as the name of a weight.
        key: everything that it follows from.
        make: computes it, from nothing else. Whoever takes a result does not change it.
        held: what the key names by identity, which lives as long as the result.
    """
    shelf = _shelf.get()
    return make() if shelf is None else shelf.once(of, key, make, held)


def told_by(samples: Sequence[Mapping[str, Tensor]]) -> Hashable:
    """Samples as a part of a key, by the identity and version of their tensors: hold them beside it."""
    return tuple((name, id(x), x._version) for feeds in samples for name, x in feeds.items())
