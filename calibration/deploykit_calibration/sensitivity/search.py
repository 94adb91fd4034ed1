"""Which layers to keep next: the greatest gain first, or the greatest for its cost, planned again at every step.

A move is one layer, or all the layers that must be float for one tensor not to be rounded: keeping one of two readers
of a noisy tensor gains little, keeping both a lot. Gains shrink as layers are kept, so that a move whose last known
gain is below another's new one need not be planned again (lazy greedy, Minoux 1978). A gain that grew, because a
neighbour was kept, is found when the others are used up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

Move = tuple[str, ...]
Noise = Callable[[Move], float]
"""Noise with these layers kept, relative to that with none."""

_LEAST = 1e-3  # of the noise that is left: a move that gains less is none


def sequence(moves: Iterable[Move], noise: Noise, weight: Callable[[Move], float], most: int) -> Iterator[Move]:
    """Layers to keep, step by step: each is the one before and the layers of the best move.

    Args:
        moves: what may be kept at once.
        noise: see `Noise`.
        weight: the weight of a move; its gain is divided by it.
        most: layers kept in all.
    """
    kept: Move = ()
    left, step = noise(kept), 0

    def planned(move: Move) -> tuple[float, int, Move]:
        new = tuple(name for name in move if name not in kept)
        return -(left - noise((*kept, *new))) / weight(move), step, move

    waiting = [planned(move) for move in moves]
    passed: list[tuple[float, int, Move]] = []
    heapq.heapify(waiting)
    while len(kept) < most and (waiting or any(at < step for _, at, _ in passed)):
        if not waiting:  # what gained nothing may gain something now
            waiting, passed = [planned(move) for _, at, move in passed if at < step], []
            heapq.heapify(waiting)
        known, at, move = heapq.heappop(waiting)
        new = tuple(name for name in move if name not in kept)
        if not new or len(kept) + len(new) > most:
            continue
        if at < step:
            heapq.heappush(waiting, planned(move))
        elif -known * weight(move) < _LEAST * left:
            passed.append((known, at, move))
        else:
            kept = (*kept, *new)
            left, step = noise(kept), step + 1
            yield kept


def pruned(kept: Move, noise: Noise, weight: Callable[[Move], float], most: float) -> Move:
    """Fewer layers of no more noise: of some that are kept, the dearest are let go first, as far as the noise allows.

    What was chosen early, for its gain, may be what later choices make superfluous; and of what nearly meets a goal a
    cheap layer more and a dear one less is cheaper.

    Args:
        kept: layers of less noise than is asked for.
        most: noise that may be left.
    """
    left = kept
    for name in sorted(kept, key=lambda each: weight((each,)), reverse=True):
        rest = tuple(each for each in left if each != name)
        if noise(rest) <= most:
            left = rest
    return left


def moves_of(layers: Sequence[str], reads: Iterable[tuple[str, ...]]) -> tuple[Move, ...]:
    """Single layers, and the sets of them that one rounding hangs on.

    Args:
        layers: names of the quantised layers.
        reads: for each rounded tensor the layers that read or write it.
    """
    known: dict[Move, None] = dict.fromkeys((name,) for name in layers)
    order = {name: at for at, name in enumerate(layers)}
    for names in reads:
        inside = tuple(sorted((name for name in dict.fromkeys(names) if name in order), key=order.__getitem__))
        if len(inside) > 1:
            known[inside] = None
    return tuple(known)
