"""The worst contiguous part of an output: what one figure for the whole of it would hide.

A detector that returns boxes in pixels and scores in 0..1 as one tensor has a good SQNR as a whole while its scores are
noise. Here every axis is cut into slices, signal and noise are summed slice by slice, and where the slices' SQNR
changes from one level to another, both sides are parts that are judged as if they were outputs of their own.

Slices are not judged one by one: a class that is nearly silent is a slice of poor SQNR in a good model. A cut therefore
needs two sides that differ by `STEP_DB` on average, slices that lie close to their side's average (`EXPLAINED`), and
enough values on both sides (`LEAST_VALUES`). A stretch between two sides that are alike (boxes, scores, masks) is
looked for where no single cut explains the levels, and parts that repeat (anchors, each with boxes and scores) where no
stretch does: the slices of all repetitions are then one.

A part of few slices among many may be a class that is nearly silent, wherever it lies: a part has a sixth of the slices
or four of them. One score behind four numbers of a box is a part, the first class of ten is none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.contract.decibels import sqnr_db

STEP_DB = 10.0
"""How far the mean SQNR of the slices on both sides of a cut differs at least."""
EXPLAINED = 0.6
"""Which share of the slices' variance, in dB, a cut explains at least."""

LEAST_VALUES = 16
"""How many values a part has at least, over all samples: the SQNR of that many is known to about 2 dB."""

_SLICES = 4096  # per axis; longer axes are taken in groups of neighbours
_DEPTH = 3  # cuts of cuts
_SHARE = 6  # of the slices, one in so many: fewer may be a class that is nearly silent
_LEAST_STRETCH = 4  # slices: fewer between others may be a class that is nearly silent
_STRETCHES = 512  # positions of a longer axis at which a stretch may begin or end
_SILENT = 1e-12  # of the loudest slice's power: a slice below has no signal to compare
_FLOOR_DB, _CEILING_DB = -40.0, 100.0  # beyond these a slice is as bad, or as good, as it can be

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A contiguous part of an output.

    Attributes:
        axis: along which it was cut, counted from 0.
        start, stop: its slices, `stop` not included.
        sqnr_db: the SQNR of this part alone, over all samples.
        period: the part is the same slices of every stretch of so many; None where it does not repeat.
    """

    axis: int
    start: int
    stop: int
    sqnr_db: float
    period: int | None = None

    def __str__(self) -> str:
        repeated = f" in every {self.period}" if self.period else ""
        return f"part {self.start}:{self.stop}{repeated} of axis {self.axis}"


@dataclass
class PartSearch:
    """Sums signal and noise slice by slice over samples of one shape; memory does not grow with their number.

    Args:
        batch: whether axis 0 counts samples, and is no axis of the output itself.
    """

    batch: bool
    _shape: tuple[int, ...] | None = None
    _sums: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)
    _values: dict[int, int] = field(default_factory=dict)

    def add(self, reference: NDArray[Any], noise: NDArray[Any]) -> None:
        """Take in one sample.

        Args:
            reference, noise: float64, finite, of one shape; an axis whose size differs from sample to sample is
                left out from then on.
        """
        first = int(self.batch)
        if self._shape is None:
            self._shape = reference.shape
        if len(self._shape) != reference.ndim:
            self._sums, self._shape = {}, ()
        if not self._shape:
            return
        signal, error = np.square(reference), np.square(noise)
        for axis in range(first, reference.ndim):
            if reference.shape[axis] != self._shape[axis]:
                self._sums.pop(axis, None)
            elif reference.shape[axis] > 1 and reference.size:
                self._take(axis, signal, error)

    def _take(self, axis: int, signal: Floats, error: Floats) -> None:
        others = tuple(i for i in range(signal.ndim) if i != axis)
        new = tuple(_grouped(power.sum(axis=others)) for power in (signal, error))
        old = self._sums.get(axis)
        self._values[axis] = self._values.get(axis, 0) + signal.size // signal.shape[axis]
        self._sums[axis] = (new[0], new[1]) if old is None else (old[0] + new[0], old[1] + new[1])

    @property
    def worst(self) -> Part | None:
        """The part of the lowest SQNR over all axes; None where no axis has parts that differ."""
        return min(self._parts(), key=lambda part: part.sqnr_db, default=None)

    def _parts(self) -> Iterator[Part]:
        assert self._shape is not None or not self._sums
        for axis, (signal, noise) in self._sums.items():
            size = self._shape[axis] if self._shape else 0
            width = -(-size // _SLICES)
            least = math.ceil(LEAST_VALUES / (self._values[axis] * width))
            for start, stop, figure, period in _found(signal, noise, least):
                repeats = period * width if period else None
                yield Part(axis, start * width, min(stop * width, size), figure, repeats)


def _found(signal: Floats, noise: Floats, least: int) -> list[tuple[int, int, float, int | None]]:
    """Start, stop, SQNR and period of the parts of one axis; empty where it is of one kind.

    Args:
        signal, noise: power of each slice.
        least: slices that a part has for the number of its values.
    """
    cut = _split(signal, noise, max(least, _least_slices(len(signal))))
    if cut:
        return [(*part, None) for part in cut]
    for period in _periods(signal, noise):
        repeats = len(signal) // period
        folded = [power.reshape(repeats, period).sum(axis=0) for power in (signal, noise)]
        fewest = max(math.ceil(least / repeats), _least_slices(period), 2 if repeats == 2 and period > 2 else 1)
        if parts := _split(folded[0], folded[1], fewest):
            return [(*part, period) for part in parts]
    return []


def _split(signal: Floats, noise: Floats, least: int) -> list[tuple[int, int, float]]:
    """Start, stop and SQNR of stretches of different levels."""
    heard = np.flatnonzero(signal > _SILENT * signal.max(initial=0.0))
    cuts = _cuts(_levels(signal[heard], noise[heard]), _DEPTH, least)
    edges = [0, *(int(heard[cut]) for cut in cuts), len(signal)] if cuts else []
    return [
        (start, stop, sqnr_db(float(signal[start:stop].sum()), float(noise[start:stop].sum())))
        for start, stop in itertools.pairwise(edges)
    ]


def _least_slices(count: int) -> int:
    return min(_LEAST_STRETCH, math.ceil(count / _SHARE))


def _periods(signal: Floats, noise: Floats) -> Iterator[int]:
    """Periods, the shortest first, with which the levels of the slices repeat: they explain what no single cut does."""
    count = len(signal)
    if count < 4 or not (signal > _SILENT * signal.max(initial=0.0)).all():
        return
    levels = _levels(signal, noise)
    for period in range(2, count // 2 + 1):
        if count % period == 0:
            phases = levels.reshape(-1, period).mean(axis=0)
            if float(phases.var()) >= EXPLAINED * float(levels.var()) > 0.0:
                yield period


def _grouped(power: Floats) -> Floats:
    """Sums of neighbours where there are more than `_SLICES`."""
    width = -(-len(power) // _SLICES)
    return power if width == 1 else np.add.reduceat(power, np.arange(0, len(power), width))


def _levels(signal: Floats, noise: Floats) -> Floats:
    """SQNR of each slice in dB, within what tells slices apart."""
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.divide(signal, noise, out=np.full_like(signal, np.inf), where=noise > 0.0)
        return np.clip(10.0 * np.log10(ratio), _FLOOR_DB, _CEILING_DB)


def _cuts(levels: Floats, depth: int, least: int) -> list[int]:
    """Where a sequence of levels changes, as positions of the first slice behind each cut, in order.

    Args:
        depth: how many cuts lie in each other.
        least: slices on both sides of a cut.
    """
    if depth == 0 or len(levels) < 2 * least:
        return []
    cuts = _one_cut(levels, least) or _stretch(levels, least)
    edges = [0, *cuts, len(levels)]
    inner = [
        [start + further for further in _cuts(levels[start:stop], depth - 1, least)]
        for start, stop in itertools.pairwise(edges)
    ]
    return sorted({*cuts, *itertools.chain.from_iterable(inner)}) if cuts else []


def _one_cut(levels: Floats, least: int) -> list[int]:
    """The cut that explains most, where both sides differ enough."""
    count = len(levels)
    positions = np.arange(least, count - least + 1)
    sums = np.cumsum(levels)
    before = sums[positions - 1] / positions
    after = (sums[-1] - sums[positions - 1]) / (count - positions)
    best, share = _most(levels, before - after, positions)
    return [int(positions[best])] if share else []


def _stretch(levels: Floats, least: int) -> list[int]:
    """The two cuts around a stretch that differs from both of its sides, which lie alike: no single cut explains it."""
    count = len(levels)
    starts, stops = np.triu_indices(_grid_size(count) + 1, k=1)
    grid = np.unique(np.linspace(0, count, _grid_size(count) + 1).round().astype(np.intp))
    starts, stops = grid[starts], grid[stops]
    sides = (starts >= least) & (count - stops >= least) & (stops - starts >= max(least, _LEAST_STRETCH))
    starts, stops = starts[sides], stops[sides]
    if not len(starts):
        return []
    sums = np.concatenate([[0.0], np.cumsum(levels)])
    width = stops - starts
    inside = sums[stops] - sums[starts]
    best, share = _most(levels, inside / width - (sums[-1] - inside) / (count - width), width)
    return [int(starts[best]), int(stops[best])] if share else []


def _grid_size(count: int) -> int:
    """Positions that the ends of a stretch are looked for at; all pairs of them are tried."""
    return min(count, _STRETCHES)


def _most(levels: Floats, steps: Floats, width: NDArray[np.intp]) -> tuple[int, bool]:
    """The split of the most variance between its two groups, of `width` slices and the others; whether it is one."""
    count = len(levels)
    between = width * (count - width) / count**2 * np.square(steps)
    best = int(np.argmax(between))
    return best, bool(abs(steps[best]) >= STEP_DB and between[best] >= EXPLAINED * float(levels.var()))
