"""Scales and ticks: where a figure lies on a picture, and which round figures are written beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_DECADES = 8.0  # a range of at least this ratio is shown in logarithms


@dataclass(frozen=True)
class Scale:
    """A mapping from figures to units of a picture.

    Attributes:
        low, high: figures at its ends, low < high; above 0 where it is logarithmic.
        start, end: their places.
        logarithmic: equal ratios are equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Place of a figure; what lies outside is put at the end."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Round figures within it, about `count`."""
        return _log_ticks(self.low, self.high, count) if self.logarithmic else linear_ticks(self.low, self.high, count)


def spanning(values: Sequence[float], start: float, end: float, *, positive: bool = False) -> Scale:
    """A scale with room for all values, at least one; logarithmic where they are positive and far apart.

    Args:
        positive: figures that a logarithm may be taken of, such as times.
    """
    low, high = min(values), max(values)
    if positive and low > 0.0 and high / low >= _DECADES:
        return Scale(low / 1.3, high * 1.3, start, end, logarithmic=True)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(max(0.0, low - room) if positive else low - room, high + room, start, end)


def from_zero(most: float, start: float, end: float) -> Scale:
    """A linear scale of lengths, for bars."""
    return Scale(0.0, most if most > 0.0 else 1.0, start, end)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two figures."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in _ROUND if each * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [each * 10.0**power for power in powers for each in steps if low <= each * 10.0**power <= high]
        if len(found) <= count + 2:
            return found
    return found[:: math.ceil(len(found) / count)]


def tick_label(value: float) -> str:
    """A round figure in as few characters as tell it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
