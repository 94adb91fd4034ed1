"""`TensorStatistics`: what calibration remembers of one tensor, small, mergeable, and enough for every range method.

The histogram has a fixed number of bins, half of them on each side of zero, and a bin width that is a power of
two chosen from the exact extremes alone. A wider range is reached by merging neighbouring bins, which is
`index >> 1` for every bin because zero is a bin edge; so two histograms always meet at a common width without
interpolation, and merging is exactly associative and commutative: sharded, streamed and extended
calibrations of the same samples give the same numbers.

NumPy only; never imports torch. Refuses nothing but NaN or infinite values handed in as finite ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit_calibration.sample_extremes import NONE_SEEN, SampleExtremes

HALF_BINS = 2048
BINS = 2 * HALF_BINS
_HALF_BITS = HALF_BINS.bit_length() - 1
MIN_EXPONENT = -160  # narrower than a quantum of the smallest float32, where all of float32 is resolved
MAX_EXPONENT = 1024 - _HALF_BITS  # of the largest float64
_COUNT_LIMIT = 1 << 62
_EXACT_EXPONENTS = 100

Counts = NDArray[np.int64]


def bin_exponent(magnitude: float) -> int:
    """The exponent of the narrowest power-of-two bin width whose histogram holds values up to `magnitude`.

    A function of the extremes alone, which is what makes merging associative.
    """
    if magnitude == 0.0:
        return MIN_EXPONENT
    return max(math.frexp(magnitude)[1] - _HALF_BITS, MIN_EXPONENT)


def bin_counts(values: NDArray[np.floating[Any]], exponent: int) -> Counts:
    """Count values into bins of width 2**exponent; bin `HALF_BINS` begins at zero.

    Args:
        values: finite, shape (n,), magnitudes within the range of `exponent`.
    Returns:
        int64, shape (BINS,).
    """
    # A power of two only moves float32's exponent: exact where that cannot underflow or overflow, and faster there.
    exact = np.float32 if -_EXACT_EXPONENTS <= exponent <= 0 and values.dtype == np.float32 else np.float64
    scaled = np.multiply(values, exact(math.ldexp(1.0, -exponent)), dtype=exact)
    np.floor(scaled, out=scaled)
    scaled += HALF_BINS
    return np.bincount(scaled.astype(np.intp), minlength=BINS)


def coarsen(counts: Counts, steps: int) -> Counts:
    """Double the bin width `steps` times by merging neighbouring bins. Exact; returns a new array if steps > 0."""
    if steps == 0:
        return counts
    steps = min(steps, _HALF_BITS)  # further steps leave one bin on each side of zero where they are
    merged = counts.reshape(-1, 1 << steps).sum(axis=1)
    out = np.zeros(BINS, dtype=np.int64)
    half = HALF_BINS >> steps
    out[HALF_BINS - half : HALF_BINS + half] = merged
    return out


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of one tensor over some samples. A value: nothing changes it, merging makes a new one.

    Attributes:
        count: finite elements seen, exact.
        batches: batches seen.
        minimum, maximum: exact extremes of the finite elements; +inf and -inf where none was seen.
        exponent: the histogram's bin width is 2**exponent.
        histogram: int64, shape (BINS,), read-only; counts of the sampled elements (all or a random part of `count`).
        zeros: how many of the sampled elements are exactly zero (they lie in bin HALF_BINS).
        nonfinite: infinite elements that the model makes on purpose (attention masks), exact.
        samples: the outermost extremes of single samples; none in tables of before schema 3, and where infinite
            elements were seen.
    """

    count: int
    batches: int
    minimum: float
    maximum: float
    exponent: int
    histogram: Counts
    zeros: int = 0
    nonfinite: int = 0
    samples: SampleExtremes = NONE_SEEN

    def __post_init__(self) -> None:
        """Raises ValueError for what no pass can have seen: a table is a file, and files are damaged or made up."""
        counts = (self.count, self.batches, self.zeros, self.nonfinite)
        if any(type(number) is not int or not 0 <= number < _COUNT_LIMIT for number in counts):
            raise ValueError(f"counts {counts} are not from 0 to 2**62")
        if type(self.exponent) is not int or not MIN_EXPONENT <= self.exponent <= MAX_EXPONENT:
            raise ValueError(f"an exponent of {self.exponent} is not from {MIN_EXPONENT} to {MAX_EXPONENT}")
        if self.histogram.dtype != np.int64 or self.histogram.shape != (BINS,) or self.histogram.min() < 0:
            raise ValueError(f"a histogram is {BINS} int64 counts from 0")
        seen = math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum <= self.maximum
        if not (seen if self.count else (self.minimum, self.maximum) == (math.inf, -math.inf)):
            raise ValueError(f"{self.count} elements cannot have the extremes {self.minimum} and {self.maximum}")
        if self.magnitude > HALF_BINS * self.bin_width or float(self.histogram.sum(dtype=np.float64)) > self.count:
            raise ValueError("the histogram does not fit the extremes or the count")
        if self.samples.count and (self.samples.lowest[0] < self.minimum or self.samples.highest[0] > self.maximum):
            raise ValueError("extremes of samples lie outside of those of the tensor")
        if self.zeros > self.histogram[HALF_BINS]:
            raise ValueError(f"{self.zeros} zeros are not among {self.histogram[HALF_BINS]} elements of their bin")

    @classmethod
    def empty(cls) -> TensorStatistics:
        """The identity of `merge`."""
        return cls(0, 0, math.inf, -math.inf, MIN_EXPONENT, _frozen(np.zeros(BINS, dtype=np.int64)))

    @classmethod
    def of(cls, array: NDArray[np.floating[Any]], *, batches: int = 1) -> TensorStatistics:
        """Statistics of every element of an array of any shape; infinite and NaN elements are only counted.

        Axis 0 counts samples.
        """
        rows = np.atleast_1d(np.asarray(array))
        flat = rows.reshape(-1)
        finite = flat[np.isfinite(flat)]
        builder = StatisticsBuilder()
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)
        extremes = SampleExtremes()
        if 0 < flat.size == finite.size:
            samples = rows.reshape(len(rows), -1)
            extremes = SampleExtremes.of(samples.min(axis=1).tolist(), samples.max(axis=1).tolist())
        builder.add(low, high, finite.size, finite, nonfinite=flat.size - finite.size, samples=extremes)
        built = builder.build()
        return cls(**{**built.__dict__, "batches": batches})

    @property
    def sampled(self) -> int:
        """How many elements the histogram holds."""
        return int(self.histogram.sum())

    @property
    def bin_width(self) -> float:
        """Width of a bin, in the tensor's unit."""
        return math.ldexp(1.0, self.exponent)

    @property
    def magnitude(self) -> float:
        """Largest absolute value seen; 0 where nothing was seen."""
        return max(abs(self.minimum), abs(self.maximum)) if self.count else 0.0

    def bin_edges(self) -> NDArray[np.float64]:
        """float64, shape (BINS + 1,), ascending; the middle one is zero."""
        return np.arange(-HALF_BINS, HALF_BINS + 1, dtype=np.float64) * self.bin_width

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Statistics of the samples of both. Associative, commutative, exact; `empty()` is the identity."""
        exponent = max(self.exponent, other.exponent)
        mine = coarsen(self.histogram, exponent - self.exponent)
        return TensorStatistics(
            count=self.count + other.count,
            batches=self.batches + other.batches,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            exponent=exponent,
            histogram=_frozen(mine + coarsen(other.histogram, exponent - other.exponent)),
            zeros=self.zeros + other.zeros,
            nonfinite=self.nonfinite + other.nonfinite,
            samples=self.samples.merge(other.samples),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStatistics):
            return NotImplemented
        mine, theirs = ({**s.__dict__, "histogram": None} for s in (self, other))
        return mine == theirs and np.array_equal(self.histogram, other.histogram)

    def __hash__(self) -> int:
        return hash((self.count, self.minimum, self.maximum, self.exponent, self.histogram.tobytes()))


class StatisticsBuilder:
    """Accumulates batches of one tensor in place, for the observer's inner loop; `build()` gives the value."""

    def __init__(self) -> None:
        self._count = self._batches = self._zeros = self._nonfinite = 0
        self._minimum, self._maximum = math.inf, -math.inf
        self._exponent = MIN_EXPONENT
        self._histogram: Counts = np.zeros(BINS, dtype=np.int64)
        self._samples = SampleExtremes()

    def add(
        self,
        minimum: float,
        maximum: float,
        count: int,
        sample: NDArray[np.floating[Any]],
        *,
        nonfinite: int = 0,
        samples: SampleExtremes | None = None,
    ) -> None:
        """Add one batch.

        Args:
            minimum, maximum: exact finite extremes of the whole batch (+inf, -inf when count is 0).
            count: finite elements of the whole batch.
            sample: finite values, shape (n,), within the extremes; what the histogram counts.
            nonfinite: elements left out because they are infinite.
            samples: the extremes of the batch's samples; left out, the batch counts as one sample.
        """
        self._batches += 1
        self._nonfinite += nonfinite
        if count == 0:
            return
        self._count += count
        self._samples = self._samples.merge(samples or SampleExtremes.of([minimum], [maximum]))
        # Adding 0.0 turns -0.0 into 0.0: equal values must give equal bytes on disk.
        self._minimum, self._maximum = min(self._minimum, minimum) + 0.0, max(self._maximum, maximum) + 0.0
        exponent = max(self._exponent, bin_exponent(max(abs(minimum), abs(maximum))))
        if exponent > self._exponent:
            self._histogram = coarsen(self._histogram, exponent - self._exponent)
            self._exponent = exponent
        self._histogram += bin_counts(sample, exponent)
        self._zeros += sample.size - int(np.count_nonzero(sample))

    def build(self) -> TensorStatistics:
        """The statistics so far."""
        return TensorStatistics(
            count=self._count,
            batches=self._batches,
            minimum=self._minimum,
            maximum=self._maximum,
            exponent=self._exponent,
            histogram=_frozen(self._histogram.copy()),
            zeros=self._zeros,
            nonfinite=self._nonfinite,
            samples=self._samples,
        )


def _frozen(counts: Counts) -> Counts:
    counts.flags.writeable = False
    return counts
