"""What a user's metric returned, and what a fall of it means: one number, or a score for each sample.

With a score for each sample the fall has an interval, because both models were scored on the same samples. Right or
wrong (0 and 1) is judged as McNemar does, by the samples on which the two disagree; other scores by drawing the
differences again (paired bootstrap, seeded). 597 images resolve no tenth of a percent, and the interval says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.contract.errors import UsageError

CONFIDENCE = 0.95
MCNEMAR, BOOTSTRAP = "McNemar", "paired bootstrap"

_NORMAL = 1.959963984540054  # of the normal distribution, 2.5 % lie above
_DRAWS = 2000
_NAMED = 8  # entries of a dict that a hint names
HINT = "return one number, higher is better, or one for each sample, whose mean is the metric"


@dataclass(frozen=True, eq=False)
class Scores:
    """A metric of one model; higher is better.

    Attributes:
        value: the metric; with scores, their mean.
        each: float64, shape (samples,), in the order in which the metric took them; None where there is one number.
        ran: samples that the model computed for it; 0 where nobody counted.
    """

    value: float
    each: NDArray[np.float64] | None = None
    ran: int = 0


@dataclass(frozen=True)
class Fall:
    """How far a metric fell on other samples of the kind, as far as these tell.

    Attributes:
        low, high: ends of the interval that holds `CONFIDENCE` of what is likely, in the metric's unit; negative is a
            rise.
        samples: the samples that were scored.
        method: `McNemar` or `paired bootstrap`.
        p_value: the p-value of McNemar's exact test, that both models are equally often right; None of other scores.
    """

    low: float
    high: float
    samples: int
    method: str
    p_value: float | None = None

    @property
    def resolves(self) -> float:
        """The least fall that these samples can tell from none: half of the interval."""
        return (self.high - self.low) / 2.0

    def __str__(self) -> str:
        sure = f"{CONFIDENCE:.0%} confidence"
        return f"{self.low:.3g} to {self.high:.3g} with {sure} ({self.method}, {self.samples} samples)"


def scores_of(found: Any) -> Scores:
    """What `evaluate` returned, checked.

    A tuple is several metrics (`return accuracy, loss`) and never scores of samples; one entry is one number, whatever
    holds it; a truth value is 1 or 0.

    Raises:
        UsageError: neither a number nor a list of them; the hint says what to return instead.
    """
    array = _array_of(found)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"evaluate= returned {_shown(found)}", hint=_way_out(found))
    if array.size == 1:
        return Scores(float(array.reshape(())))
    if array.ndim != 1 or not array.size:
        raise UsageError(f"evaluate= returned an array of shape {list(array.shape)}", hint=HINT)
    array = array.astype(np.float64)
    return Scores(float(array.mean()), array)


def _array_of(found: Any) -> NDArray[Any]:
    """The array that NumPy makes of it, also of tensors with a gradient or elsewhere; objects where it is no number.

    Text that would read as a number is none.
    """
    if isinstance(found, tuple):
        return _NO_NUMBERS
    try:
        array = np.asarray(_plain([_plain(each) for each in found] if isinstance(found, list) else found))
        return np.asarray(float(found)) if array.dtype.kind == "O" and array.ndim == 0 else array
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return _NO_NUMBERS


_NO_NUMBERS = np.empty(0, dtype=object)


def _plain(value: Any) -> Any:
    """A tensor as Python's numbers: NumPy has no bfloat16, and reads neither gradients nor a device's memory."""
    return value.detach().tolist() if hasattr(value, "detach") else value


def _way_out(found: Any) -> str:
    """What to return in place of something that is no metric."""
    if found is None:
        return f"it ended without a value: {HINT}"
    if isinstance(found, Mapping) and found:
        keys = ", ".join(map(repr, list(found)[:_NAMED]))
        return f"return the one figure that may fall, as in `return found[{next(iter(found))!r}]` (there are {keys})"
    if isinstance(found, tuple) and found:
        return (
            "return the one figure that may fall, as in `return accuracy` (of a loss its negative);"
            " a score for each sample is a list or an array"
        )
    return HINT


def fall_of(reference: Scores, candidate: Scores) -> Fall | None:
    """The interval of `reference.value - candidate.value`; None where a metric is one number.

    Raises:
        UsageError: the two have another number of samples, so that they are no pairs.
    """
    if reference.each is None or candidate.each is None:
        return None
    if reference.each.shape != candidate.each.shape:
        sizes = f"{reference.each.size} scores for the float model and {candidate.each.size} for another"
        raise UsageError(f"evaluate= returned {sizes}", hint="score the same samples in the same order in each call")
    if not (np.isfinite(reference.each).all() and np.isfinite(candidate.each).all()):
        return None
    both = np.concatenate([reference.each, candidate.each])
    if np.isin(both, (0.0, 1.0)).all():
        return _by_disagreement(reference.each, candidate.each)
    return _drawn(reference.each - candidate.each)


def _by_disagreement(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> Fall:
    """After Agresti and Min (2005): half a sample is added to each cell, so that no disagreement is not certainty."""
    lost = int(np.count_nonzero(reference > candidate))
    won, count = int(np.count_nonzero(candidate > reference)), reference.size
    size = count + 2.0
    middle = (lost - won) / size
    spread = _NORMAL * math.sqrt(max(lost + won + 1.0 - (lost - won) ** 2 / size, 0.0)) / size
    return Fall(middle - spread, middle + spread, count, MCNEMAR, _exact(lost, won))


def _exact(lost: int, won: int) -> float:
    """Two-sided probability of a split at least as uneven, were each disagreement a fair coin."""
    total, fewer = lost + won, min(lost, won)
    logs = (math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1))
    return min(1.0, 2.0 * math.fsum(math.exp(log - total * math.log(2.0)) for log in logs))


def _drawn(differences: NDArray[np.float64]) -> Fall | None:
    if differences.size < 2:
        return None
    generator, count = np.random.default_rng(0), differences.size
    means = [float(differences[generator.integers(count, size=count)].mean()) for _ in range(_DRAWS)]
    low, high = np.quantile(means, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0])
    return Fall(float(low), float(high), count, BOOTSTRAP)


def _shown(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 80 else f"{text[:80]}..."
