"""`Spread`: what the samples that were compared tell of samples that were not.

One figure over a few samples is one draw: the noise of a handful of samples moves by decibels. The samples are drawn
again, with replacement, and the figure taken of every draw (Efron's bootstrap); the interval holds `CONFIDENCE` of
them. The draws are seeded, so the same samples give the same interval. It knows nothing of kinds of samples that were
not among those compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.contract.decibels import sqnr_db

CONFIDENCE = 0.9
"""Share of the draws that lie within the interval; one in twenty lies below it."""
KEPT = 128
"""Samples whose own figures are kept."""

_DRAWS = 1000


@dataclass(frozen=True)
class Spread:
    """An interval for the SQNR of one output on further samples, and the SQNR of each sample.

    Attributes:
        low_db, high_db: ends of the interval.
        samples: the samples that were compared; rows of the batch axis, where the output has one.
        sample_db: SQNR of single samples, ascending, rounded to 0.1 dB; of more than `KEPT` the lowest.
    """

    low_db: float
    high_db: float
    samples: int
    sample_db: tuple[float, ...]

    @property
    def median_db(self) -> float:
        """The median over the samples kept."""
        return float(np.median(self.sample_db))


def spread_of(signal: Sequence[float], noise: Sequence[float]) -> Spread | None:
    """The spread of some samples; None of one sample, without a signal, and where nothing differs.

    Args:
        signal, noise: power of each sample.
    """
    powers = np.array([signal, noise], dtype=np.float64)
    count = powers.shape[1]
    if count < 2 or not powers.any(axis=1).all():
        return None
    generator = np.random.default_rng(0)
    totals = [powers[:, generator.integers(count, size=count)].sum(axis=1) for _ in range(_DRAWS)]
    drawn = sorted(sqnr_db(float(total[0]), float(total[1])) for total in totals)
    outside = round((1.0 - CONFIDENCE) / 2.0 * _DRAWS)
    heard = ((one, other) for one, other in powers.T.tolist() if one > 0.0)
    each = sorted(round(sqnr_db(one, other), 1) for one, other in heard)
    return Spread(drawn[outside], drawn[-1 - outside], count, tuple(each[:KEPT]))
