"""Samples that calibration does not see, so that parity can be judged on them.

A figure taken on the samples that the ranges came from is too good: nothing in them is clipped. Every second of the
first 16 samples is held back, every fourth until 32, and every eighth of later ones, up to a number and a size: the
SQNR of four samples moves by 3 dB with the draw where that of a network's outputs varies, and what ranges lose by eight
samples less is within 0.3 dB. Which ones depends on their position alone, however they are batched. One sample is never
held back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploykit_calibration.batching import Batch, Gatherer, rows_of

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.capture.model import CapturedModel

    Feeds = dict[str, Tensor]

HELD_SAMPLES = 32
_HELD_BYTES = 64 << 20
_EVERY = ((16, 2), (32, 4))  # positions below the first are held back at steps of the second ...
_LATER = 8  # ... and later ones at these


class Holdout:
    """Splits a stream of the user's batches; what is held back comes out of `batches` in the size of the graph."""

    def __init__(self, captured: CapturedModel) -> None:
        self._gatherer = Gatherer(captured)
        self._by_rows = self._gatherer.by_rows
        self._position = self._bytes = self.count = 0
        self._held: list[Batch] = []

    def observed(self, batches: Iterator[tuple[int, Feeds]]) -> Iterator[tuple[int, Feeds]]:
        """Pass on what calibration may see.

        Args:
            batches: the user's batches, with their numbers.
        """
        for index, feeds in batches:
            yield from self._split(index, feeds)

    def batches(self) -> list[Batch]:
        """What was held back, in batches that the graph can run."""
        return [*self._held, *self._gatherer.rest()]

    def _split(self, index: int, feeds: Feeds) -> Iterator[tuple[int, Feeds]]:
        kept: list[int] = []
        for row in range(self._units(feeds)):
            if self._is_due(self._position + row) and self._fits(feeds):
                self._hold(index, self._rows(feeds, [row]))
            else:
                kept.append(row)
        whole = len(kept) == self._units(feeds)
        self._position += self._units(feeds)
        if kept:
            yield index, feeds if whole else self._rows(feeds, kept)

    def _is_due(self, position: int) -> bool:
        every = next((step for end, step in _EVERY if position < end), _LATER)
        return position % every == every - 1 and self.count < HELD_SAMPLES

    def _fits(self, feeds: Feeds) -> bool:
        size = sum(x.numel() * x.element_size() for x in feeds.values()) // self._units(feeds)
        return not self.count or self._bytes + size <= _HELD_BYTES

    def _hold(self, index: int, feeds: Feeds) -> None:
        self.count += 1
        self._bytes += sum(x.numel() * x.element_size() for x in feeds.values())
        self._held += self._gatherer.add(index, feeds)

    def _units(self, feeds: Feeds) -> int:
        """Samples of a batch; a batch without a common axis of samples is one."""
        return rows_of(feeds) if self._by_rows else 1

    def _rows(self, feeds: Feeds, rows: list[int]) -> Feeds:
        return {name: x[rows] for name, x in feeds.items()} if self._by_rows else feeds
