"""What a task metric is measured on: sessions that note which samples pass through them, and how many.

A metric on calibration data is flattered, because ranges and rounding were fitted to exactly these samples. `evaluate`
is the user's own function, so its data is known only by what it feeds; samples are told by their bytes, row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds

if TYPE_CHECKING:
    from deploykit_calibration.observe import CalibrationRun

MOST_SEEN = 0.5
"""From this share of evaluated samples on, what was evaluated is the calibration data."""


class Watch:
    """Notes samples, and compares them with those that calibration kept.

    Args:
        run: what `calibrate` gave; None where there was none.
    """

    def __init__(self, run: CalibrationRun | None) -> None:
        kept = [] if run is None else [{name: x.numpy() for name, x in feeds.items()} for feeds in run.samples]
        self._known = {digest for feeds in kept for digest in rows_of(feeds)}
        self._calibrated = run.table.samples if run is not None else 0
        self._passed: set[bytes] = set()

    def over(self, session: Session) -> Session:
        """The same session; what is fed to it is noted."""
        if not self._known:
            return session

        return _Noted(session, lambda feeds: self._passed.update(rows_of(feeds)))

    @property
    def seen(self) -> float:
        """Share of the samples that passed which calibration saw, 0 to 1; estimated where it did not keep them all."""
        if not self._passed or not self._known:
            return 0.0
        found = len(self._known & self._passed) / len(self._known)
        return min(1.0, found * self._calibrated / len(self._passed))

    @property
    def remarks(self) -> Iterator[str]:
        """What must be said beside the metric; nothing where no sample is known."""
        if self.seen:
            yield (
                f"evaluate= measures on data that calibration saw: {len(self._known & self._passed)} of the"
                f" {len(self._known)} calibration samples that are known are among the {len(self._passed)} it ran;"
                " the metric is flattered, pass held-out data"
            )


class Tally:
    """Counts the samples that pass through a session, to tell scores of samples from a list of something else.

    Attributes:
        rows: samples, where axis 0 of all inputs is their batch: at most as many.
        least: the same where only an axis 0 of any length is a batch: at least as many, unless a sample takes several
            runs.
    """

    def __init__(self) -> None:
        self.rows = self.least = 0

    def over(self, session: Session) -> Session:
        """The same session; what is fed to it is counted."""
        batched = all(spec.shape and isinstance(spec.shape[0], str) for spec in session.inputs)

        def note(feeds: Feeds) -> None:
            rows = _rows(feeds.values()) or 1
            self.rows += rows
            self.least += rows if batched else 1

        return _Noted(session, note)


class _Noted(Session):
    """A session of another: what is run in it is noted, and what is measured is that one's."""

    def __init__(self, session: Session, note: Callable[[Feeds], None]) -> None:
        super().__init__(session.inputs, session.outputs, threads=session.threads)
        self._session, self._note = session, note

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._note(feeds)
        return self._session.run(feeds)

    def op_times(self, feeds: Feeds, *, runs: int) -> tuple[OpTime, ...]:
        return self._session.op_times(feeds, runs=runs)

    def times_ms(self, feeds: Feeds, *, runs: int) -> list[float]:
        return self._session.times_ms(feeds, runs=runs)

    @property
    def peak_memory_bytes(self) -> int | None:
        return self._session.peak_memory_bytes


def rows_of(feeds: Feeds | Mapping[str, np.ndarray]) -> Iterable[bytes]:
    """A digest of each sample of some feeds: of each row, where axis 0 of all inputs is as long; else of the whole."""
    arrays = [np.ascontiguousarray(feeds[name]) for name in sorted(feeds)]
    count = _rows(arrays)
    if not count:
        return [_digest(arrays)]
    return [_digest([array[row] for array in arrays]) for row in range(count)]


def _rows(arrays: Iterable[np.ndarray]) -> int:
    """The length of axis 0; 0 where the arrays differ in it, or have none."""
    sizes = {array.shape[0] if array.ndim else 0 for array in arrays}
    return sizes.pop() if len(sizes) == 1 else 0


def _digest(arrays: Iterable[np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
