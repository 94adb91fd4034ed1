"""`Tail`: how the outermost values of a tensor fall off, estimated from what calibration remembers of them.

The extremes of single samples tell it: values of one sample are often large together, and a channel that is always the
largest has no tail. Of one sample alone, its outermost values do. Beyond a threshold among them they are taken to fall
off as normal noise does, of the scale that has their mean excess there. An exponential tail, the other usual choice
(Coles, "An Introduction to Statistical Modeling of Extreme Values", section 4), promises values at twice the extreme
that networks do not have. Two ends that look alike tell of each other: of twice as many values.

That is so of sums of many terms. The product of two tensors does fall off more slowly, and the root of it as normal
noise: where the operator says so (`degrees`), the root is taken first.

NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit_calibration.sample_extremes import KEPT
from deploykit_calibration.statistics import HALF_BINS, TensorStatistics

MOST_ROOT = 4
"""A higher root leaves nothing to tell tails by."""

_SHARE = 2 / 3  # of what is known: the outer ones, whose mean excess is taken
_ALIKE = 2.0  # standard errors: ends whose means differ by less are taken to be alike

_BOUND = 1e-3  # of the threshold: values that lie closer have a bound there
_FAR = 25.0  # scales from where on the excess is that of the asymptote, and exp() has digits left
_HALVINGS = 40

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tail:
    """What is known of the values at one end of a tensor, in magnitudes.

    Attributes:
        threshold: from which on the excess is taken.
        excess: mean of what goes beyond it.
        rate: values beyond it in one sample.
        reach: the largest seen that tells of this end.
        degree: the root of magnitudes that falls off as normal noise; threshold and excess are of that root.
    """

    threshold: float
    excess: float
    rate: float
    reach: float
    degree: int = 1

    def beyond(self, ends: Floats) -> tuple[Floats, Floats]:
        """What goes further than `ends`.

        Returns:
            The expected number of values in one sample, and the mean of what goes beyond the end.
        """
        ends = np.maximum(ends ** (1.0 / self.degree), self.threshold)
        if self.excess <= _BOUND * self.threshold:
            return np.zeros_like(ends), np.zeros_like(ends)
        scale = _normal_scale(self.threshold, self.excess)
        shares = np.array([math.erfc(end / scale * math.sqrt(0.5)) for end in ends])
        excess = np.array([_normal_excess(end / scale) * scale for end in ends])
        values = self.rate * shares / math.erfc(self.threshold / scale * math.sqrt(0.5))
        return values, _of_powers(ends, excess, self.degree)


def _of_powers(ends: Floats, excess: Floats, degree: int) -> Floats:
    """Mean excess of powers over that of an end, of values whose own excess falls off exponentially."""
    terms = (math.perm(degree, each) * ends ** (degree - each) * excess**each for each in range(1, degree + 1))
    total: Floats = np.sum(list(terms), axis=0)
    return total


def _normal_excess(x: float) -> float:
    """Mean of X - x of a normal X of scale 1 that is larger than `x`, which is from zero."""
    if x > _FAR:
        return 1.0 / x
    return math.sqrt(2.0 / math.pi) * math.exp(-0.5 * x * x) / math.erfc(x * math.sqrt(0.5)) - x


def _normal_scale(threshold: float, excess: float) -> float:
    """The scale of normal noise that has a mean excess beyond a threshold; found by halving, as it grows with it."""
    low, high = 0.0, 2.0 * (threshold + excess)  # at this scale the excess is 0.8 of it at zero, and more than asked
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _normal_excess(threshold / middle) * middle < excess else (low, middle)
    return high


@dataclass(frozen=True)
class _Outermost:
    """The largest magnitudes at one end, descending, of `known` that there were: one of a sample, or one of a value."""

    values: Floats
    known: int

    def merge(self, other: _Outermost) -> _Outermost:
        values = np.sort(np.concatenate([self.values, other.values]))[::-1]
        return _Outermost(values[:KEPT], self.known + other.known)


def tails_of(statistics: TensorStatistics, degree: int = 1) -> tuple[Tail | None, Tail | None]:
    """The lower and the upper tail; None of an end without values.

    Args:
        degree: of the tensor, see `degrees`; 0 counts as 1, more than `MOST_ROOT` as that.
    """
    degree = min(max(degree, 1), MOST_ROOT)
    low, high = (_outermost(statistics, sign) for sign in (-1, 1))
    if not _are_alike(low.values, high.values):
        return _fit(statistics, low, (-1,), degree), _fit(statistics, high, (1,), degree)
    both = _fit(statistics, low.merge(high), (-1, 1), degree)
    return both, both


def _outermost(statistics: TensorStatistics, sign: int) -> _Outermost:
    samples = statistics.samples
    if samples.count > 1:
        ends = np.array(samples.highest if sign > 0 else samples.lowest, dtype=np.float64) * sign
        return _Outermost(ends[ends > 0.0], samples.count)
    counts = _counts(statistics, sign)
    used = np.flatnonzero(counts)[::-1]
    kept = np.repeat(used, np.minimum(counts[used], KEPT))[:KEPT]
    most = statistics.maximum if sign > 0 else -statistics.minimum
    return _Outermost(np.minimum((kept + 0.5) * statistics.bin_width, most), int(counts.sum()))


def _counts(statistics: TensorStatistics, sign: int) -> NDArray[np.int64]:
    """Sampled values of one sign by magnitude, in bins from zero on; without exact zeros."""
    counts = (statistics.histogram[HALF_BINS:] if sign > 0 else statistics.histogram[HALF_BINS - 1 :: -1]).copy()
    counts[0] -= statistics.zeros if sign > 0 else 0
    return counts


def _are_alike(one: Floats, other: Floats) -> bool:
    """Whether the largest of both, as many of each, could be of one kind: their means differ by chance."""
    size = min(len(one), len(other))
    if size < 2 or size < max(len(one), len(other)) / 2:
        return False
    one, other = one[:size], other[:size]
    scatter = math.sqrt((float(one.var(ddof=1)) + float(other.var(ddof=1))) / size)
    return abs(float(one.mean() - other.mean())) <= _ALIKE * scatter


def _fit(statistics: TensorStatistics, found: _Outermost, signs: tuple[int, ...], degree: int) -> Tail | None:
    """The tail of one end, or of each of two that are alike."""
    values = found.values[: max(2, math.ceil(_SHARE * found.known))]
    if not len(values):
        return None
    threshold = float(values[-1])
    roots = values ** (1.0 / degree)
    excess = float((roots - roots[-1]).sum()) / max(len(roots) - 1, 1)
    inner = math.floor(threshold / statistics.bin_width) + 1
    sampled = sum(int(_counts(statistics, sign)[inner:].sum()) for sign in signs)
    values_beyond = max(sampled * statistics.count / statistics.sampled, len(values))
    rate = values_beyond / statistics.samples.count / len(signs)
    return Tail(float(roots[-1]), excess, rate, float(values[0]), degree)
