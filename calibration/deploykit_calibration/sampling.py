"""What the observer takes from one activation: exact extremes, and a random sample for the histogram.

Samples are drawn at random positions. Strided ones alias with the layout (every channel-count-th value is the same
channel), which cost 7 dB in a measured case. A bfloat16 activation has too few mantissa bits for a histogram, whose
bins would be empty or full in a pattern of their own; each sampled value is therefore spread evenly over the interval
that rounds to it, by random low bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploykit_calibration.sample_extremes import NONE_SEEN, SampleExtremes

SAMPLE_SIZE = 65_536  # per tensor and batch, at most
_SMALL = 4_096  # elements of a sample
SAMPLES_PER_ROW = 8_192  # per tensor and sample of a batch: a batch of one must not cost as much as one of eight

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Observation:
    """One activation of one batch.

    Attributes:
        minimum, maximum: exact, of the finite elements; NaN where the activation holds NaN.
        count: finite elements.
        infinite: infinite elements.
        sample: finite values, float32, all of them or a part at random positions.
        samples: the extremes of the batch's samples, one where axis 0 does not count them; none beside infinities.
    """

    minimum: float
    maximum: float
    count: int
    infinite: int
    sample: Values
    samples: SampleExtremes = NONE_SEEN


class Sampler:
    """Draws the same positions for the same seed and batch number, others for every batch."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._positions: dict[tuple[int, int], Tensor] = {}
        self._shifted: dict[int, Tensor] = {}
        self._noise = np.random.default_rng(seed).integers(-0x8000, 0x8000, SAMPLE_SIZE, dtype=np.int32)
        self._batch, self._size = 0, SAMPLE_SIZE
        self._rows = self._length = 1

    def begin(self, batch: int, rows: int, length: int = 0) -> None:
        """Move to the positions of a batch.

        Args:
            batch: its number.
            rows: how many samples it has.
            length: the length of the axis that counts them, repeated ones included; 0 where there is no such axis.
        """
        self._batch, self._rows, self._length = batch, rows, length
        self._size = min(rows * SAMPLES_PER_ROW, SAMPLE_SIZE)
        self._shifted.clear()

    def observe(self, value: Tensor) -> Observation:
        """Extremes and sample of a floating tensor of any layout; `value` is not kept."""
        flat = _flat(value)
        if flat.numel() == 0:
            return Observation(np.inf, -np.inf, 0, 0, np.zeros(0, dtype=np.float32))
        lows, highs = self._extremes(value, flat)
        minimum, maximum = float(np.min(lows)), float(np.max(highs))  # NaN goes through
        if not np.isfinite(minimum + maximum):
            return self._finite_part(flat)
        sample = flat if flat.numel() <= self._size else flat.index_select(0, self._positions_in(flat.numel()))
        samples = SampleExtremes.of(lows[: self._rows], highs[: self._rows])
        return Observation(minimum, maximum, flat.numel(), 0, self._values(sample, minimum, maximum), samples)

    def _extremes(self, value: Tensor, flat: Tensor) -> tuple[list[float], list[float]]:
        """Minima and maxima of the samples along axis 0; of the whole where that does not count them."""
        if not (1 < self._length == (value.shape[0] if value.ndim else 0)):
            low, high = torch.aminmax(flat)
            return [float(low)], [float(high)]
        if value.numel() <= _SMALL * self._length:  # one call for small samples, one for each that is large: faster
            lows, highs = torch.aminmax(value.reshape(self._length, -1), dim=1)
            return lows.tolist(), highs.tolist()
        pairs = [torch.aminmax(_flat(row)) for row in value]
        return [float(low) for low, _ in pairs], [float(high) for _, high in pairs]

    def _finite_part(self, flat: Tensor) -> Observation:
        if bool(flat.isnan().any()):
            return Observation(np.nan, np.nan, 0, 0, np.zeros(0, dtype=np.float32))
        finite = flat[flat.isfinite()]
        part = self.observe(finite.reshape(-1))
        return Observation(part.minimum, part.maximum, part.count, flat.numel() - finite.numel(), part.sample)

    def _positions_in(self, size: int) -> Tensor:
        """Random positions, nearly sorted for the memory's sake, rotated by a random step every batch."""
        if size not in self._shifted:
            key = (size, self._size)
            if key not in self._positions:
                drawn = np.random.default_rng((self._seed, *key)).integers(size, size=self._size)
                self._positions[key] = torch.from_numpy(np.sort(drawn))
            step = int(np.random.default_rng((self._seed, self._batch, size)).integers(size))
            self._shifted[size] = (self._positions[key] + step).remainder_(size)
        return self._shifted[size]

    def _values(self, sample: Tensor, minimum: float, maximum: float) -> Values:
        if sample.dtype != torch.bfloat16:
            return np.array(sample.float().resolve_neg().numpy())  # a copy: the activation may be overwritten
        bits = sample.view(torch.int16).numpy().astype(np.int32) << 16
        spread = (bits + self._noise[: bits.size]).view(np.float32)
        # Zero stays zero, and nothing leaves the exact extremes (nor becomes NaN beside the largest exponent).
        return np.where(bits << 1 == 0, np.float32(0.0), np.fmin(np.fmax(spread, minimum), maximum)).astype(np.float32)


def extremes(value: Tensor) -> tuple[float, float]:
    """Exact minimum and maximum; NaN where there is any, (inf, -inf) of an empty tensor."""
    if value.numel() == 0:
        return np.inf, -np.inf
    minimum, maximum = torch.aminmax(_flat(value))
    return float(minimum), float(maximum)


def _flat(value: Tensor) -> Tensor:
    """Every element once, in any order, without a copy where the memory is dense (channels-last too)."""
    if value.is_contiguous():
        return value.reshape(-1)
    strides: list[tuple[int, Any]] = sorted((s, n) for s, n in zip(value.stride(), value.shape, strict=True) if n != 1)
    expected = 1
    for stride, size in strides:
        if stride != expected:
            return value.reshape(-1)
        expected *= size
    return value.as_strided((value.numel(),), (1,))
