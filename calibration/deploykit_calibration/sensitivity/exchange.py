"""Cheaper layers for dear ones, at no more noise: what a search that only adds, or only drops, does not find.

One or two of the kept layers are let go and up to two others kept in their place (a 2-exchange, as for knapsacks). What
each would do alone says which exchanges are worth planning; only what was planned is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from deploykit_calibration.sensitivity.search import Move, Noise

_ROUNDS = 24
_PLANNED = 20  # exchanges of one round that are planned, those that save most first
_PAIRED = 12  # layers that are exchanged two at a time: those that are worth it most
_LUCK = 0.02  # of the noise: what an estimate may be beyond, before it is planned
_LEAST = 1e-6  # of the weight: what saves less saves nothing


def exchanged(kept: Move, names: Sequence[str], noise: Noise, weight: Callable[[Move], float], most: float) -> Move:
    """A set of layers that weighs less, or the same set.

    Args:
        kept: layers whose noise is at most `most`.
        names: all layers that may be kept.
        noise: see `Noise`.
        weight: the weight of layers; of several it is the sum.
        most: noise that may be left.
    """
    left = kept
    for _ in range(_ROUNDS):
        after = _lighter(left, names, noise, weight, most)
        if after is None:
            break
        left = after
    return left


def _lighter(
    left: Move, names: Sequence[str], noise: Noise, weight: Callable[[Move], float], most: float
) -> Move | None:
    """The set after one exchange, of those that were planned the one that saves most; None where none is allowed."""
    now, weights = noise(left), {name: weight((name,)) for name in names}
    lost = {name: noise(tuple(each for each in left if each != name)) - now for name in left}
    gained = {name: noise((*left, name)) - now for name in names if name not in lost}
    spare = most - now + _LUCK * most
    trials = [
        (saved, out, into)
        for out in _some(lost, weights)
        for into in ((), *_some(gained, weights))
        if (saved := sum(weights[each] for each in out) - sum(weights[each] for each in into)) > _LEAST
        and sum(lost[each] for each in out) + sum(gained[each] for each in into) <= spare
    ]
    for _, out, into in sorted(trials, key=lambda trial: -trial[0])[:_PLANNED]:
        after = (*(each for each in left if each not in out), *into)
        if noise(after) <= most:
            return after
    return None


def _some(changes: Mapping[str, float], weights: Mapping[str, float]) -> Iterator[Move]:
    """Every layer, and pairs of those with the least noise for their weight."""
    yield from ((name,) for name in changes)
    yield from combinations(sorted(changes, key=lambda each: changes[each] / weights[each])[:_PAIRED], 2)
