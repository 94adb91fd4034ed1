"""How far values go that calibration has not seen yet, and when it has seen too few samples to say.

The largest value of eight samples is not the largest of the next eight: ranges that end there clip fresh inputs, which
costs 8 to 20 dB of SQNR on small networks. Large values of most tensors fall off exponentially or faster; then the
largest of m times as many values lies further out by ln(m) times their mean excess over a threshold (Coles, "An
Introduction to Statistical Modeling of Extreme Values", sections 3 and 4). Ranges are widened to what `HORIZON` samples
would show, up to `MOST` times; tensors with a bound that is often reached (ReLU6, images) have no excess and stay, and
so does an end that was chosen inside of what was seen: more of the same would not move it.

NumPy only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deploykit_calibration.statistics import HALF_BINS, TensorStatistics

HORIZON = 256
"""Number of samples that ranges shall hold for."""
MOST = 1.5
"""How many times wider a range may become: a guess from few samples must not cost more than half a bit."""

_TAIL, _LEAST_TAIL = 0.001, 8.0  # share, and number, of values whose mean excess is taken
_INSIDE = 0.95  # of the extreme: a range that ends before was not ended by what was seen, and stays

Range = tuple[float, float]
Floats = NDArray[np.float64]


def widened(statistics: TensorStatistics, chosen: Range, samples: int, *, symmetric: bool) -> Range:
    """A range with room for what further samples would show.

    Args:
        chosen: (lo, hi) from the statistics, lo <= 0 <= hi.
        samples: that the statistics were taken from; 0 where nobody knows, and the range stays.
        symmetric: whether the result is to be (-a, a).
    Returns:
        (lo, hi), finite, holding `chosen`, and at most `MOST` times as wide on either side.
    """
    steps = math.log(HORIZON / samples) if 0 < samples < HORIZON else 0.0
    if steps == 0.0 or statistics.sampled == 0:
        return chosen
    seen = (-statistics.minimum, statistics.maximum)
    ends = [
        end if end < _INSIDE * most else min(end + steps * _mean_excess(statistics, end, sign), MOST * end)
        for (end, sign), most in zip(_ends(chosen), seen, strict=True)
    ]
    if not all(math.isfinite(end) for end in ends):
        return chosen
    lo, hi = (-max(ends), max(ends)) if symmetric else (-ends[0], ends[1])
    return lo + 0.0, hi


def _ends(chosen: Range) -> tuple[tuple[float, int], tuple[float, int]]:
    """Distance from zero and sign of both ends."""
    return (-chosen[0], -1), (chosen[1], 1)


def _mean_excess(statistics: TensorStatistics, end: float, sign: int) -> float:
    """Mean distance of the outermost values of one sign from the innermost of them; values count up to `end`."""
    half = statistics.histogram[HALF_BINS:] if sign > 0 else statistics.histogram[HALF_BINS - 1 :: -1]
    counts = half.astype(np.float64)
    counts[0] -= statistics.zeros if sign > 0 else 0
    used = np.flatnonzero(counts)[::-1]
    if used.size == 0:
        return 0.0
    values: Floats = np.minimum((used + 0.5) * statistics.bin_width, end)
    outer = np.cumsum(counts[used])
    wanted = min(max(_LEAST_TAIL, _TAIL * statistics.sampled), 0.5 * outer[-1])
    tail = slice(0, int(np.searchsorted(outer, wanted)) + 1)
    excess = values[tail] - values[tail][-1]
    return float(excess @ counts[used][tail] / outer[tail][-1])
