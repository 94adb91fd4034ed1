"""The outermost extremes of single samples: what a tensor's range may still become with samples that were not seen.

One extreme over all samples cannot say how far the next sample goes; the extremes of each can. The `KEPT` lowest minima
and highest maxima are kept: merging them is exact, associative and commutative, and their size does not grow.

NumPy only. Where axis 0 of a tensor does not count samples, a whole run of the graph counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

KEPT = 32
"""How many extremes are kept at each end."""
_COUNT_LIMIT = 1 << 62


@dataclass(frozen=True)
class SampleExtremes:
    """Order statistics of the samples' extremes. A value: merging makes a new one.

    Attributes:
        count: samples that held a finite element.
        lowest: the `KEPT` (or `count`) smallest minima of single samples, ascending.
        highest: the `KEPT` (or `count`) largest maxima of single samples, descending.
    """

    count: int = 0
    lowest: tuple[float, ...] = ()
    highest: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for what no samples can have shown."""
        kept = min(self.count, KEPT) if type(self.count) is int and self.count < _COUNT_LIMIT else -1
        if kept < 0 or len(self.lowest) != kept or len(self.highest) != kept:
            raise ValueError(
                f"{len(self.lowest)} and {len(self.highest)} extremes are not those of {self.count} samples"
            )
        if not all(math.isfinite(value) for value in (*self.lowest, *self.highest)):
            raise ValueError("an extreme of a sample is not finite")
        if list(self.lowest) != sorted(self.lowest) or list(self.highest) != sorted(self.highest, reverse=True):
            raise ValueError("extremes of samples are not in order")

    @classmethod
    def of(cls, minima: Sequence[float], maxima: Sequence[float]) -> SampleExtremes:
        """Extremes of samples, from the smallest and the largest value of each, in any order."""
        # Adding 0.0 turns -0.0 into 0.0: equal values must give equal bytes on disk.
        lowest = sorted(value + 0.0 for value in minima)[:KEPT]
        return cls(len(minima), tuple(lowest), tuple(sorted((value + 0.0 for value in maxima), reverse=True)[:KEPT]))

    def merge(self, other: SampleExtremes) -> SampleExtremes:
        """The extremes of the samples of both. Associative, commutative, exact; no samples at all is the identity."""
        lowest = sorted((*self.lowest, *other.lowest))[:KEPT]
        highest = sorted((*self.highest, *other.highest), reverse=True)[:KEPT]
        return SampleExtremes(self.count + other.count, tuple(lowest), tuple(highest))


NONE_SEEN = SampleExtremes()
"""The identity of `merge`."""
