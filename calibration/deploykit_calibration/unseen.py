"""Room in a range for what calibration has not seen yet.

The largest value of a dozen samples is not the largest of the next dozen. Of a large tensor, a value outside of the
range is one among thousands and costs next to nothing; of a small one it costs 8 to 20 dB. So a range ends where the
expected cost of rounding, which grows with it, and that of clipping what is still to come, which falls, are least
together, both in the loss that ranges are chosen with. How far values go is told by their `tails`.

A bound that is often reached (ReLU6, images) has no tail and stays. So does an end that was chosen inside of what was
seen: more of the same would not move it.

NumPy only.
"""

from __future__ import annotations

import math

import numpy as np

from deploykit_calibration.statistics import TensorStatistics
from deploykit_calibration.tails import Tail, tails_of

MOST = 2.0
"""How many times further a range may go than what was seen: a guess must not cost more than one bit."""

_INSIDE = 0.95  # of the extreme: a range that ends before was not ended by what was seen, and stays
_POWER = 2.5  # of the loss
_ROUNDED = 0.5**_POWER / (_POWER + 1.0)  # mean of |x|^p, x uniform within half a step of zero, in steps
_CLIPPED = math.gamma(_POWER + 1.0)  # mean of x^p, x exponential, in mean excesses; of normal noise a little less
_CANDIDATES = 65

Range = tuple[float, float]


def widened(statistics: TensorStatistics, chosen: Range, *, symmetric: bool, bits: int = 8, degree: int = 1) -> Range:
    """A range with room for what further samples would show.

    Args:
        chosen: (lo, hi) from the statistics, lo <= 0 <= hi.
        symmetric: whether the result is to be (-a, a).
        bits: the width of the quantized type.
        degree: of the tensor: how many values that vary are multiplied into one, see `degrees`.
    Returns:
        (lo, hi), finite, holding `chosen`; neither end further than `MOST` times the larger of both extremes.
    """
    ends = np.array([-chosen[0], chosen[1]])
    if not ends.any() or not statistics.samples.count or not math.isfinite(MOST * statistics.magnitude):
        return chosen
    seen = np.array([-statistics.minimum, statistics.maximum])
    ended = (ends > 0.0) & (ends >= _INSIDE * seen)
    tails = [tail if here else None for tail, here in zip(tails_of(statistics, degree), ended, strict=True)]
    elements, steps = statistics.count / statistics.samples.count, 2**bits - 1
    if symmetric:
        ends[:] = _least_loss(ends.max(), None, [tail for tail in tails if tail], elements, steps)
        return -float(ends[0]) + 0.0, float(ends[1])
    for side in (1, 0):
        if (tail := tails[side]) is not None:
            ends[side] = _least_loss(ends[side], ends[1 - side], [tail], elements, steps)
    return -float(ends[0]) + 0.0, float(ends[1])


def _least_loss(end: float, other: float | None, tails: list[Tail], elements: float, steps: int) -> float:
    """The end, from `end` on, of least expected loss of a sample.

    Args:
        other: magnitude of the range's other end; None where it is the same.
        tails: the tails of what lies beyond the end.
        elements: the elements of one sample.
        steps: the steps of the quantizer.
    """
    most = max([end, *(MOST * tail.reach for tail in tails)])
    ends = np.linspace(end, most, _CANDIDATES) / most
    width = ends + (ends if other is None else other / most)
    loss = elements * _ROUNDED * (width / steps) ** _POWER
    for tail in tails:
        values, excess = tail.beyond(ends * most)
        loss += _CLIPPED * values * (excess / most) ** _POWER
    return max(end, float(ends[np.argmin(loss)] * most))
