"""Which layers to keep next: the greatest gain first, or the greatest for its cost, planned again at every step.

A move is one layer, or all the layers that must be float for one tensor not to be rounded: keeping one of two readers
of a noisy tensor gains little, keeping both a lot. Gains shrink as layers are kept, so that a move whose last known
gain is below another's new one need not be planned again (lazy greedy, Minoux 1978); where a gain grew, because its
neighbour was kept, the move is found a step later.
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
        weight: of a move; its gain is divided by it.
        most: layers kept in all.
    """
    kept: Move = ()
    left = noise(kept)
    waiting = [(-(left - noise(move)) / weight(move), 0, move) for move in moves]
    heapq.heapify(waiting)
    step = 0
    while waiting and len(kept) < most:
        known, planned, move = heapq.heappop(waiting)
        new = tuple(name for name in move if name not in kept)
        if not new or len(kept) + len(new) > most:
            continue
        if planned < step:
            gain = left - noise((*kept, *new))
            heapq.heappush(waiting, (-gain / weight(move), step, move))
            continue
        if -known * weight(move) < _LEAST * left:
            continue
        kept = (*kept, *new)
        left, step = noise(kept), step + 1
        yield kept


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
