"""`ChannelSums`: the mean of a layer's input in every channel, exactly mergeable.

Rounding a weight shifts the mean of what its layer computes by (rounded - float) x the mean of the input, channel by
channel; with these means placement takes the shift out of the bias (`bias.corrected`). Sums are kept in fixed point,
because float additions depend on their order, and a merged table must not depend on who saw which batch.

NumPy only; never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit.contract.errors import CalibrationError

FRACTION_BITS = 40
_LIMIT = 2.0**47  # 65,000 batches of such sums fit

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelSums:
    """Sums over all elements of each channel. A value: nothing changes it, merging makes a new one.

    Attributes:
        count: elements of each channel.
        whole, fraction: int64, shape (channels,): the sum is whole + fraction / 2**FRACTION_BITS, and
            0 <= fraction < 2**FRACTION_BITS.
    """

    count: int
    whole: Integers
    fraction: Integers

    def __post_init__(self) -> None:
        """Raises ValueError for what no pass can have summed: a table is a file, and files are damaged."""
        arrays = (self.whole, self.fraction)
        if any(array.dtype != np.int64 or array.shape != (self.whole.size,) for array in arrays) or not self.whole.size:
            raise ValueError("sums of channels are two int64 vectors of one length")
        if self.count < 1 or float(np.abs(self.whole.astype(np.float64)).max()) > _LIMIT * self.count:
            raise ValueError(f"no {self.count} elements have such sums")
        if self.fraction.min() < 0 or self.fraction.max() >= 1 << FRACTION_BITS:
            raise ValueError("a fraction of a sum is outside its bits")

    @classmethod
    def of(cls, sums: NDArray[np.float64], count: int) -> ChannelSums:
        """From the sums of one batch.

        Args:
            sums: shape (channels,), magnitudes up to 2**47.
            count: elements of each channel.
        """
        return cls(count, *_carried(*_fixed_point(sums)))

    def merge(self, other: ChannelSums) -> ChannelSums:
        """The sums of both. Exact, associative, commutative.

        Raises:
            CalibrationError: another number of channels.
        """
        if self.whole.size != other.whole.size:
            raise CalibrationError(
                f"sums of {self.whole.size} and of {other.whole.size} channels are not of one layer",
                hint="one of the tables is damaged: calibrate again",
            )
        carried = _carried(self.whole + other.whole, self.fraction + other.fraction)
        return ChannelSums(self.count + other.count, *carried)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Shape (channels,), in the unit of the tensor."""
        total: NDArray[np.float64] = self.whole + self.fraction * 2.0**-FRACTION_BITS
        return total / self.count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelSums):
            return NotImplemented
        same = np.array_equal(self.whole, other.whole) and np.array_equal(self.fraction, other.fraction)
        return same and self.count == other.count

    def __hash__(self) -> int:
        return hash((self.count, self.whole.tobytes(), self.fraction.tobytes()))


class ChannelSumsBuilder:
    """Accumulates batches of one layer's input in place, for the observer's inner loop; `build()` gives the value."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._whole, self._fraction = np.zeros(channels, np.int64), np.zeros(channels, np.int64)

    def add(self, sums: NDArray[np.float64], count: int) -> None:
        """Add one batch; one that has an infinity (of a mask), or what no network computes, is left out.

        Args:
            sums: shape (channels,).
            count: elements of each channel.
        """
        if not np.abs(sums).max() <= _LIMIT:  # written so that NaN is left out too
            return
        whole, fraction = _fixed_point(sums)
        self._count += count
        self._whole += whole
        self._fraction += fraction

    def build(self) -> ChannelSums | None:
        """The sums so far; None where no batch counted."""
        return ChannelSums(self._count, *_carried(self._whole, self._fraction)) if self._count else None


def _fixed_point(sums: NDArray[np.float64]) -> tuple[Integers, Integers]:
    """Whole part and fraction, which may be one for a sum just below zero."""
    whole = np.floor(sums)
    return whole.astype(np.int64), ((sums - whole) * 2.0**FRACTION_BITS).astype(np.int64)


def _carried(whole: Integers, fraction: Integers) -> tuple[Integers, Integers]:
    """The same sum, with the whole part of the fraction moved into the integer."""
    return whole + (fraction >> FRACTION_BITS), fraction & ((1 << FRACTION_BITS) - 1)
