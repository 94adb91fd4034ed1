"""Whether something changed between two releases, or only wavered: exact rank tests, corrected for their number.

What else a machine does makes runs slower and never quicker. Latency is therefore judged by the quickest twelfth of the
runs, or sixteen of them, or ten of few: beside other work these were 3 % apart in two processes that measured the same
file, within `MARGIN`, and medians 16 % (`benchmarks/report.py`). The test is Nelson's precedence test: how many of the
new runs are quicker than the quickest of the old ones. It asks whether a shift is larger than the margin, so that a
long measurement does not make a finding of what one process differs from the next.

SciPy is not needed: the distributions are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARGIN = 0.04
"""How far the latency of the same file may lie apart, as a share, when two processes measure it."""
PAIRED_MARGIN = 0.02
"""The same, in turns in one process."""
LEVEL = 0.01
"""Probability of one false finding, or more, among all comparisons of a report together."""
BUSY = 1.2
"""How many times the quickest run the median is where so much else was running that the runs tell nothing."""
FEWEST = 12
"""Runs, or samples, below which nothing is tested."""

_QUICK, _SURE, _LEAST = 0.08, 16, 10  # share of the runs, and how many of some and of few: a handful proves nothing
_STRETCH = 5  # runs, of which the quickest stands for all
_CONFIDENCE_DEVIATIONS = 1.96  # of a normal distribution: 95 % lie within


@dataclass(frozen=True)
class Shift:
    """How far new figures lie from old ones.

    Attributes:
        estimate: ratio new / old less 1: 0.1 is 10 % more.
        low, high: its 95 % interval as the runs tell it; what one process differs from the next is not in it.
        p_more, p_less: of the exact one-sided tests that the figures rose, or fell, by more than the margin.
        paired: whether both were measured in turns.
    """

    estimate: float
    low: float
    high: float
    p_more: float
    p_less: float
    paired: bool = False

    @property
    def p_value(self) -> float:
        """Of the two-sided test."""
        return min(1.0, 2.0 * min(self.p_more, self.p_less))


def shift_of(old: Sequence[float], new: Sequence[float], margin: float = MARGIN) -> Shift | None:
    """Compare runs of two measurements; None where there are too few, or one took no time.

    Args:
        old, new: time of each run, one unit.
        margin: shift, as a share, that is no change.
    """
    before, after = _sorted(old), _sorted(new)
    if min(before.size, after.size) < FEWEST or min(before[0], after[0]) <= 0.0:
        return None
    (low, middle, high), (own_low, own_middle, own_high) = _quick_of(before), _quick_of(after)
    return Shift(
        own_middle / middle - 1.0,
        own_low / high - 1.0,
        own_high / low - 1.0,
        p_more=_precedence(before * (1.0 + margin), after),
        p_less=_precedence(after * (1.0 + margin), before),
    )


def paired_shift(old: Sequence[float], new: Sequence[float], margin: float = PAIRED_MARGIN) -> Shift | None:
    """Compare runs that were measured in turns, in one process: a sign test of the ratios of short stretches.

    Args:
        old, new: time of each run, one unit, in the order of measuring.
        margin: shift, as a share, that is no change.
    """
    count = min(len(old), len(new)) // _STRETCH
    if count < FEWEST or min(*old, *new) <= 0.0:
        return None
    before, after = (
        np.asarray(values[: count * _STRETCH]).reshape(count, _STRETCH).min(axis=1) for values in (old, new)
    )
    ratios = np.sort(after / before)
    above = int(np.count_nonzero(ratios > 1.0 + margin))
    below = int(np.count_nonzero(ratios < 1.0 / (1.0 + margin)))
    outside = max(0, math.floor(count / 2 - _CONFIDENCE_DEVIATIONS * math.sqrt(count) / 2))
    low, high = float(ratios[outside]) - 1.0, float(ratios[count - 1 - outside]) - 1.0
    return Shift(float(np.median(ratios)) - 1.0, low, high, _coins(count, above), _coins(count, below), paired=True)


def is_busy(times: Sequence[float]) -> bool:
    """Whether a machine did so much else while these runs were measured that even the quickest may have waited."""
    return len(times) > 0 and float(np.median(times)) > BUSY * min(times)


def p_lower(old: Sequence[float], new: Sequence[float]) -> float | None:
    """p-value of the rank-sum test (normal, with its continuity correction) that `new` lies below `old`.

    None where either has too few figures. Ties count half, and their variance is not corrected: that is cautious.
    """
    if min(len(old), len(new)) < FEWEST:
        return None
    before, after = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    order = np.sign(before[None, :] - after[:, None])
    pairs = before.size * after.size
    above = float((order + 1.0).sum()) / 2.0 - pairs / 2.0 - 0.5
    return normal_tail(above / math.sqrt(pairs * (before.size + after.size + 1) / 12.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the p-values as they count when all of these were tested together."""
    found, most = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = most
    return found


def normal_tail(z: float) -> float:
    """Probability that a normal variable lies above `z` standard deviations."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def _sorted(values: Sequence[float]) -> NDArray[np.float64]:
    return np.sort(np.asarray(values, dtype=np.float64))


def _quick_of(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Middle of the quickest runs and its 95 % interval, by the ranks between which it lies (sorted values)."""
    size = values.size
    share = _quickest(size) / size / 2.0
    deviation = _CONFIDENCE_DEVIATIONS * math.sqrt(size * share * (1.0 - share))
    low, high = max(0, math.floor(size * share - deviation)), min(size - 1, math.ceil(size * share + deviation))
    return float(values[low]), float(np.quantile(values, share)), float(values[high])


def _quickest(count: int) -> int:
    """How many of `count` runs are looked at."""
    return min(count // 2, max(_LEAST, min(_SURE, count // 4), math.ceil(_QUICK * count)))


def _precedence(bound: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Probability that as few of `values` lie below the quickest of `bound`, were both of one distribution.

    Among all orders of the two, the number of values before the r-th of `bound` is negative hypergeometric.
    """
    many, few = bound.size, values.size
    rank = _quickest(many)
    before = int(np.count_nonzero(values < bound[rank - 1]))
    whole = _log_choose(many + few, few)
    orders = (_log_choose(rank - 1 + j, j) + _log_choose(many + few - rank - j, few - j) for j in range(before + 1))
    return min(1.0, math.fsum(math.exp(order - whole) for order in orders))


def _log_choose(of: int, chosen: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(chosen + 1) - math.lgamma(of - chosen + 1)


def _coins(count: int, heads: int) -> float:
    """Probability of at least `heads` of `count` fair coins."""
    return float(sum(math.comb(count, k) for k in range(heads, count + 1)) / 2**count)
