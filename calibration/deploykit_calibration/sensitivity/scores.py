"""Noise of every rounding at every output, from a few samples: one forward and a few backward passes for each.

Two estimates of the noise of some roundings together, from the same passes, are averaged. One sums powers, as if
errors of different elements had nothing to do with each other: steady, and too high where they cancel. The other sums
what each rounding does along random directions before it squares: all that errors have in common is in it, and so is
the luck of few directions: each is off where the other is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from deploykit.contract.errors import CalibrationError
from deploykit_calibration.sensitivity.ends import End
from deploykit_calibration.sensitivity.taps import STORED, Read, Reading, Taps

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit_calibration.prepared import Prepared

_Key = TypeVar("_Key")
PASSES, DIRECTIONS = 32, 4
"""Backward passes in all, and for each sample at most. Errors of one sample have much in common, along whatever
direction: of many samples each has few directions, of few each has several, of which several outputs have their parts.
"""


@dataclass
class Scores:
    """What the roundings do at one end.

    Attributes:
        tensors: noise power of a tensor's error through each two of its readers, summed over passes.
        weights: the weights of what a layer stores.
        slopes: sum of the squares of the gradient of what a layer stores.
        effects: for each pass, what each rounding does along its direction.
    """

    tensors: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    effects: list[Mapping[Read, float]] = field(default_factory=list)

    def powers(self, reads: Mapping[str, Sequence[str]], stored: Sequence[str]) -> float:
        """Noise of some roundings together where errors of elements are independent, per pass.

        Args:
            reads: the readers of each tensor that read it rounded.
            stored: layers with rounded stored operands.
        """
        total = sum(self.weights.get(name, 0.0) for name in stored)
        total += sum(self._of_tensor(tensor, readers) for tensor, readers in reads.items())
        return total / max(len(self.effects), 1)

    def along(self, reads: Mapping[str, Sequence[str]], stored: Sequence[str]) -> float:
        """The same with all that errors have in common, per pass."""
        chosen = [self.column[key] for key in _keys(reads, stored) if key in self.column]
        return float(np.square(self.table[:, chosen].sum(axis=1)).mean()) if self.effects else 0.0

    def _of_tensor(self, tensor: str, readers: Sequence[str]) -> float:
        powers = self.tensors.get(tensor, {})
        return sum(powers.get((first, second), 0.0) for first in readers for second in readers)

    def add(self, reading: Reading) -> None:
        """Take in what one backward pass told."""
        for tensor, powers in reading.tensors.items():
            _add(self.tensors.setdefault(tensor, {}), powers)
        _add(self.weights, reading.weights)
        _add(self.slopes, reading.slopes)
        self.effects.append(reading.effects)

    def freeze(self) -> None:
        """Make the table of effects, once all passes are there."""
        self.column = {key: at for at, key in enumerate(dict.fromkeys(key for row in self.effects for key in row))}
        rows = [[row.get(key, 0.0) for key in self.column] for row in self.effects]
        self.table = np.array(rows, dtype=np.float64).reshape(len(self.effects), len(self.column))

    def join(self, other: Scores) -> None:
        """Take over what another graph's passes, in the same directions, told of roundings that are not known here."""
        for tensor, powers in other.tensors.items():
            self.tensors[tensor] = {**powers, **self.tensors.get(tensor, {})}
        self.weights = {**other.weights, **self.weights}
        self.effects = [{**new, **own} for own, new in zip(self.effects, other.effects, strict=True)]
        self.freeze()


@dataclass(frozen=True)
class Scored:
    """The scores of one simulated graph.

    Attributes:
        ends: what was measured at.
        scores: for each end.
        reads, stored: the roundings that were tapped.
        passes: backward passes.
    """

    ends: tuple[End, ...]
    scores: tuple[Scores, ...]
    reads: frozenset[Read]
    stored: frozenset[str]
    passes: int


def score(
    prepared: Prepared, samples: Sequence[Mapping[str, Tensor]], ends: tuple[End, ...], *, seed: int = 0
) -> Scored:
    """Score every rounding of a prepared model.

    Args:
        samples: feeds by input name; few are enough.
        ends: what to measure at.
        seed: the seed of the random directions.
    Raises:
        CalibrationError: an operator has no gradient.
    """
    assert prepared.simulation is not None
    taps = Taps(prepared.exact.graph_module, prepared.simulation.graph_module)
    generator = torch.Generator().manual_seed(seed)
    found = tuple(Scores() for _ in ends)
    passes, directions = 0, min(DIRECTIONS, -(-PASSES // max(len(samples), 1)))
    for feeds in samples:
        outputs = taps.run([feeds[spec.name] for spec in prepared.captured.inputs])
        turns = _turns(ends, outputs, generator, directions)
        if passes and passes + len(turns) > PASSES:
            break
        for turn, (at, direction) in enumerate(turns):
            found[at].add(_read(taps, outputs, {ends[at].index: direction}, keep=turn + 1 < len(turns)))
        passes += len(turns)
    for scores in found:
        scores.freeze()
    return Scored(ends, found, taps.reads, taps.stored, passes)


def _turns(
    ends: Sequence[End], outputs: Sequence[Tensor], generator: torch.Generator, directions: int
) -> list[tuple[int, Tensor]]:
    """The directions of one sample, each with the position of its end: as many as are asked for, one for each end."""
    each = max(1, directions // len(ends))
    return [
        (at, direction)
        for at, end in enumerate(ends)
        for direction in end.directions(outputs[end.index], each, generator)
    ]


def _keys(reads: Mapping[str, Sequence[str]], stored: Sequence[str]) -> list[Read]:
    pairs = [(tensor, reader) for tensor, readers in reads.items() for reader in readers]
    return [*pairs, *((STORED, name) for name in stored)]


def _add(known: dict[_Key, float], new: Mapping[_Key, float]) -> None:
    for key, power in new.items():
        known[key] = known.get(key, 0.0) + power


def _read(taps: Taps, outputs: tuple[Tensor, ...], direction: Mapping[int, Tensor], *, keep: bool) -> Reading:
    try:
        return taps.read(outputs, direction, keep=keep)
    except (RuntimeError, NotImplementedError) as error:
        raise CalibrationError(
            f"the roundings cannot be scored: an operator of the model has no gradient ({error})",
            hint="score the model without the operator, or leave layers out by exclude=",
        ) from error
