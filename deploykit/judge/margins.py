"""By how many decibels a figure passes its gate, or (negative) misses it, so that figures of any kind can be compared.

Decibels of an SQNR are taken as they are. A cosine is the noise at right angles to the reference, (1/c)^2 - 1 of the
signal; of a share of equal elements or classes, the noise that makes so many differ. Where a figure equals its gate the
margin is 0 and the gate is passed: what is missed is always below 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from deploykit.contract.decibels import SQNR_CAP_DB, sqnr_db

InDecibels = Callable[[float], float]
"""A figure as decibels: growing with it, and within ±`SQNR_CAP_DB`."""
_SHARE_CAP_DB = 60.0
_LEAST_DB = 1e-6  # a miss that decibels do not resolve


def of_sqnr(value: float) -> float:
    """An SQNR, in dB; NaN is the worst."""
    return max(-SQNR_CAP_DB, min(value, SQNR_CAP_DB)) if not math.isnan(value) else -SQNR_CAP_DB


def of_cosine(value: float) -> float:
    """Signal over the noise at right angles to it, in dB, of a cosine from -1 to 1; NaN and what points away."""
    return sqnr_db(value * value, 1.0 - value * value) if value > 0.0 else -SQNR_CAP_DB


def of_share(value: float) -> float:
    """The noise that leaves such a share from 0 to 1 equal, in dB below the noise that leaves none; NaN is the worst.

    What differs is in proportion to the amplitude of small noise, so that ten times fewer are 20 dB. At most 60 dB, one
    in a thousand: samples tell no more, and a gate of 1 is at no infinite distance.
    """
    return min(2.0 * sqnr_db(1.0, 1.0 - value), _SHARE_CAP_DB) if value <= 1.0 else -SQNR_CAP_DB


def of_size(value: float) -> float:
    """A magnitude from 0 on, in dB."""
    return sqnr_db(value * value, 1.0)


def margin_db(value: float, gate: float, in_decibels: InDecibels) -> float:
    """By how much `value` passes (0 and more) or misses (below 0) `gate`, in dB; at most twice `SQNR_CAP_DB`."""
    margin = in_decibels(value) - in_decibels(gate)
    return max(margin, 0.0) if value >= gate else min(margin, -_LEAST_DB)
