"""Batches of the size that a captured graph takes, cut and joined from the user's along axis 0; and their digest.

A static graph of batch size n whose data ends with an incomplete batch gets that rest with its own samples repeated
up to n. Repeated samples change no extreme; in the histogram they weigh a little more, less than n samples' worth; in
the means of layers' inputs they do not count, unless there is no other batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deploykit.capture.model import CapturedModel

    Feeds = dict[str, Tensor]

DYNAMIC_ROWS = 8  # rows per batch where the graph takes any number: enough to keep the cores busy, little memory


@dataclass(frozen=True)
class Batch:
    """One batch that the graph can run.

    Attributes:
        feeds: the feeds, by input name.
        rows: samples in it, without padding.
        first, last: the user's batches that it was made of, counted from 0.
        by_rows: whether axis 0 of every input counts samples.
    """

    feeds: Feeds
    rows: int
    first: int
    last: int
    by_rows: bool = True

    @property
    def length(self) -> int:
        """Length of the axis that counts samples, repeated ones included; 0 where there is none."""
        return rows_of(self.feeds) if self.by_rows else 0

    @property
    def repeats(self) -> bool:
        """Whether it was filled up with samples that it has already."""
        return rows_of(self.feeds) > self.rows

    def __str__(self) -> str:
        return f"batch {self.first}" if self.first == self.last else f"batches {self.first} to {self.last}"


class Gatherer:
    """Cuts and joins batches along axis 0 to the size that the graph takes.

    `by_rows` is false where some input has no batch axis in common with the others; batches then pass as they are.
    """

    def __init__(self, captured: CapturedModel) -> None:
        self.by_rows, self._rows, self._static = _batch_axis(captured)
        self._waiting: list[tuple[int, Feeds]] = []
        self._count = 0

    def add(self, index: int, feeds: Feeds) -> Iterator[Batch]:
        """Add the user's batch `index`; yields the full batches that are now possible.

        Copies: loaders may fill the same buffer again while a batch still waits or is computed.
        """
        if not self.by_rows:
            yield Batch({name: x.clone() for name, x in feeds.items()}, rows_of(feeds), index, index, by_rows=False)
            return
        if self._waiting and _trailing(self._waiting[0][1]) != _trailing(feeds):
            yield from self.rest()
        at, rows = 0, rows_of(feeds)
        while at < rows:
            take = min(rows - at, self._rows - self._count)
            self._waiting.append((index, {name: x[at : at + take].clone() for name, x in feeds.items()}))
            self._count += take
            at += take
            if self._count == self._rows:
                yield self._joined(self._count)

    def rest(self) -> Iterator[Batch]:
        """Yields what is left; a static graph gets it with its own samples repeated up to its batch size."""
        if not self._waiting:
            return
        rows, part = self._count, list(self._waiting)
        while self._static and self._count < self._rows:
            index, feeds = part[len(self._waiting) % len(part)]
            kept = {name: x[: self._rows - self._count] for name, x in feeds.items()}
            self._waiting.append((index, kept))
            self._count += rows_of(kept)
        yield self._joined(rows)

    def _joined(self, rows: int) -> Batch:
        import torch

        parts = [feeds for _, feeds in self._waiting]
        joined = parts[0] if len(parts) == 1 else {n: torch.cat([feeds[n] for feeds in parts]) for n in parts[0]}
        indices = [index for index, _ in self._waiting]
        self._waiting, self._count = [], 0
        return Batch(joined, rows, min(indices), max(indices))


@dataclass
class DataDigest:
    """sha256 over samples in order; the same however they were batched. `hexdigest()` is the data fingerprint."""

    _hash: Any = field(default_factory=hashlib.sha256)
    _form: str = ""

    def add(self, feeds: Feeds, *, by_rows: bool) -> None:
        """Take in one batch, sample by sample where axis 0 counts samples."""
        form = ";".join(f"{n}:{x.dtype}:{tuple(x.shape[1:] if by_rows else x.shape)}" for n, x in feeds.items())
        if form != self._form:
            self._form = form
            self._hash.update(form.encode())
        arrays = [_bytes_of(x) for x in feeds.values()]
        if not by_rows or len(arrays) == 1:
            for array in arrays:
                self._hash.update(array)
            return
        rows = len(next(iter(feeds.values())))
        for row in range(rows):
            for array in arrays:
                size = array.size // rows
                self._hash.update(array[row * size : (row + 1) * size])

    def hexdigest(self) -> str:
        """The digest of everything added so far."""
        return str(self._hash.hexdigest())


def _batch_axis(captured: CapturedModel) -> tuple[bool, int, bool]:
    """(whether axis 0 counts samples in every input, rows per batch, whether that number is fixed)."""
    first = [spec.shape[0] if spec.shape else None for spec in captured.inputs]
    if not first or len(set(first)) != 1 or first[0] is None:
        return False, 0, True
    return (True, DYNAMIC_ROWS, False) if isinstance(first[0], str) else (True, int(first[0]), True)


def rows_of(feeds: Feeds) -> int:
    """Samples in a batch; 1 where the first input has no axes."""
    first = next(iter(feeds.values()))
    return len(first) if first.ndim else 1


def _trailing(feeds: Feeds) -> list[torch.Size]:
    return [x.shape[1:] for x in feeds.values()]


def _bytes_of(x: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    import torch

    return x.contiguous().reshape(-1).view(torch.uint8).numpy()
