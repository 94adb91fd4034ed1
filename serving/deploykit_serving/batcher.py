"""`Batcher`: runs of a session whose rows come from several requests, fed from a queue that has a bound.

Everything is counted in rows, not in requests: the batch, the queue, the refusals. A request of more rows than a batch
is cut into several, which are joined again. A batch that fails is run again request by request, so that what one sent
fails that one alone. The queue is first in, first out; requests whose other axes differ do not share a batch.

Nothing here knows HTTP or an event loop: `submit` returns at once, and `done` is called on a thread of the batcher.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from deploykit.contract.session import Session
from deploykit.contract.tensors import TensorSpec

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
_Shapes = tuple[tuple[int, ...], ...]
_HAND_OVER_S = 0.0003  # from a request's thread to another and back, on a busy machine
_SMOOTHING = 0.2  # of the seconds that a row takes, by which a client is told when to come again


class QueueFull(Exception):  # noqa: N818 - a state that callers act upon
    """The rows do not fit into the queue now; `retry_after_s` is when they may."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class NeverFits(Exception):  # noqa: N818 - a state that callers act upon
    """The request has more rows than the queue may ever hold."""


class Closed(Exception):  # noqa: N818 - a state that callers act upon
    """The batcher takes nothing more."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a request: its outputs or its error, and where the time went.

    Attributes:
        outputs: one array per output, by name; None where `error` is set.
        error: what its run raised.
        queued_s: from `submit` to the begin of its (first) run.
        run_s: of the (longest) run that it was part of.
        batch_rows: of the (largest) batch that it was part of.
    """

    outputs: dict[str, Array] | None
    error: Exception | None
    queued_s: float
    run_s: float
    batch_rows: int


Done = Callable[[Outcome], None]


class Watcher(Protocol):
    """Who is told of every run; metrics are."""

    def batch_ran(self, rows: int, seconds: float) -> None:
        """A run of `rows` rows took `seconds`."""


@dataclass(eq=False, slots=True)
class _Work:
    """Rows that are run together, of one request."""

    feeds: Feeds
    rows: int
    signature: tuple[tuple[int, ...], ...]
    done: Done
    arrived: float


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits or runs; what `Batcher.abandon` takes."""

    works: list[_Work] = field(default_factory=list)


class Batcher:
    """Threads that run batches, one for each instance.

    Args:
        sessions: one for each instance; the same session may stand more than once where its calls may run beside each
            other.
        max_batch: rows in a run; 1 where the rows of a batch are not independent of each other.
        wait_s: how long the first row of a batch waits for others.
        max_queue: rows that may wait.
        batched: whether axis 0 of all inputs and outputs is the batch. Where it is not, a request is a row.
        watcher: told of every run.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        *,
        max_batch: int = 1,
        wait_s: float = 0.0,
        max_queue: int = 64,
        batched: bool = True,
        watcher: Watcher | None = None,
    ) -> None:
        self.max_batch = max_batch if batched else 1
        self.max_queue = max_queue
        self.batched = batched
        self._wait_s = wait_s
        self._watcher = watcher
        self._sessions = list(sessions)
        self._waiting: deque[_Work] = deque()
        self._rows = 0
        self._peak = 0
        self._row_s = 0.0
        self._short: _Shapes | None = None  # of rows whose runs are shorter than a hand-over
        self._busy = 0
        self._closing = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._serve, args=(session,), name=f"deploykit-batch-{index}", daemon=True)
            for index, session in enumerate(sessions)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_rows(self) -> int:
        """Rows that wait now."""
        return self._rows

    @property
    def peak_rows(self) -> int:
        """The most rows that ever waited."""
        return self._peak

    @property
    def retry_after_s(self) -> float:
        """When what waits now will have run, as far as past runs tell."""
        return self._rows * self._row_s / max(1, len(self._sessions))

    def rows_of(self, feeds: Feeds) -> int:
        """Rows of a request."""
        return int(next(iter(feeds.values())).shape[0]) if self.batched and feeds else 1

    def submit(self, feeds: Feeds, done: Done) -> Ticket:
        """Let a request wait for its run.

        Args:
            feeds: one array per input, as the session wants them.
            done: called once, on a thread of the batcher, unless the request is abandoned before.
        Raises:
            QueueFull: its rows find no room.
            NeverFits: they never will.
            Closed: after `close`.
        """
        rows = self.rows_of(feeds)
        if rows > self.max_queue:
            raise NeverFits(f"{rows} rows; a request may have {self.max_queue}")
        works = self._cut(feeds, rows, done)
        with self._changed:
            if self._closing:
                raise Closed
            if self._rows + rows > self.max_queue:
                raise QueueFull(self.retry_after_s)
            self._waiting.extend(works)
            self._rows += rows
            self._peak = max(self._peak, self._rows)
            self._changed.notify(len(works))
        return Ticket(works)

    def run_now(self, feeds: Feeds) -> Outcome | None:
        """Run a request on the calling thread, where that is sooner than to hand it to another; None where it is not.

        It is so where nothing runs or waits and a run of these shapes takes less than the hand-over costs: a caller
        that is an event loop stands still for no longer than that.

        Raises:
            Closed: after `close`.
        """
        if self._short is None or self._rows or self._busy or self._closing or self.rows_of(feeds) > self.max_batch:
            return None
        if self._shapes(feeds) != self._short:  # rows of other sizes may take a thousand times as long
            return None
        began = time.perf_counter()
        outputs: dict[str, Array] | None = None
        error: Exception | None = None
        try:
            outputs = self._sessions[0].run(feeds)
        except Exception as raised:  # a runtime may raise anything
            if self._closing:  # meanwhile, on another thread
                raise Closed from raised
            error = raised
        seconds = time.perf_counter() - began
        rows = self.rows_of(feeds)
        self._ran(rows, seconds, feeds)
        return Outcome(outputs, error, 0.0, seconds, rows)

    def abandon(self, ticket: Ticket) -> None:
        """Take out of the queue what waits of a request that nobody wants any more; what runs, runs to its end."""
        with self._changed:
            for work in ticket.works:
                try:
                    self._waiting.remove(work)
                except ValueError:
                    continue
                self._rows -= work.rows

    def close(self) -> None:
        """Refuse what comes, run what waits, end the threads, and close the sessions."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for session in self._sessions:
            session.close()

    # -- requests of more rows than a batch ---------------------------------------------------------------------

    def _cut(self, feeds: Feeds, rows: int, done: Done) -> list[_Work]:
        now = time.perf_counter()
        if not self.batched or rows <= self.max_batch:
            return [_Work(feeds, rows, _signature(feeds, batched=self.batched), done, now)]
        joined = _Joined(-(-rows // self.max_batch), done)
        works = []
        for index, start in enumerate(range(0, rows, self.max_batch)):
            part = {name: array[start : start + self.max_batch] for name, array in feeds.items()}
            size = min(self.max_batch, rows - start)
            works.append(_Work(part, size, _signature(part, batched=True), joined.part(index), now))
        return works

    # -- the threads --------------------------------------------------------------------------------------------

    def _serve(self, session: Session) -> None:
        while batch := self._next():
            self._run(session, batch)
            del batch  # its arrays are not kept while the thread waits for the next
            with self._changed:
                self._busy -= 1

    def _next(self) -> list[_Work]:
        """The next batch, once it is full or its first row has waited long enough; empty when all is done."""
        with self._changed:
            while True:
                if self._waiting:
                    batch, full = self._gathered()
                    left_s = batch[0].arrived + self._wait_s - time.perf_counter()
                    if full or self._closing or left_s <= 0:
                        self._take(batch)
                        return batch
                    self._changed.wait(left_s)
                elif self._closing:
                    return []
                else:
                    self._changed.wait()

    def _gathered(self) -> tuple[list[_Work], bool]:
        """What would run with the first that waits, and whether nothing more would fit."""
        first = self._waiting[0]
        if first.rows >= self.max_batch:
            return [first], True
        batch: list[_Work] = []
        rows = 0
        for work in self._waiting:
            if work.signature != first.signature:
                continue
            if rows + work.rows > self.max_batch:
                return batch, True
            batch.append(work)
            rows += work.rows
        return batch, rows >= self.max_batch

    def _take(self, batch: list[_Work]) -> None:
        self._busy += 1
        if batch[0] is self._waiting[0] and len(batch) == 1:
            self._waiting.popleft()
        else:
            taken = set(map(id, batch))
            self._waiting = deque(work for work in self._waiting if id(work) not in taken)
        self._rows -= sum(work.rows for work in batch)
        if self._waiting:  # an instance that is idle may have been told of the rows that were just taken
            self._changed.notify()

    def _run(self, session: Session, batch: list[_Work]) -> None:
        began = time.perf_counter()
        rows = sum(work.rows for work in batch)
        try:
            found = self._outputs(session, batch)
        except Exception as error:  # a runtime may raise anything
            if len(batch) > 1:  # one of them may be to blame: each by itself
                for work in batch:
                    self._run(session, [work])
                return
            found = [error]
        seconds = time.perf_counter() - began
        self._ran(rows, seconds, batch[0].feeds)
        for work, each in zip(batch, found, strict=True):
            failed = isinstance(each, Exception)
            queued_s = began - work.arrived
            work.done(Outcome(None if failed else each, each if failed else None, queued_s, seconds, rows))  # type: ignore[arg-type]

    def _ran(self, rows: int, seconds: float, feeds: Feeds) -> None:
        """Take the time of a run into account."""
        each = seconds / rows
        self._row_s = self._row_s + _SMOOTHING * (each - self._row_s) if self._row_s else each
        short = self._wait_s == 0.0 and max(each, self._row_s) * self.max_batch < _HAND_OVER_S
        self._short = self._shapes(feeds) if short else None
        if self._watcher is not None:
            self._watcher.batch_ran(rows, seconds)

    def _shapes(self, feeds: Feeds) -> _Shapes:
        """Shapes of a row."""
        return tuple(array.shape[1 if self.batched else 0 :] for array in feeds.values())

    @staticmethod
    def _outputs(session: Session, batch: list[_Work]) -> list[dict[str, Array] | Exception]:
        """Outputs of each request of a batch."""
        if len(batch) == 1:
            return [session.run(batch[0].feeds)]
        whole = {name: np.concatenate([work.feeds[name] for work in batch]) for name in batch[0].feeds}
        outputs = session.run(whole)
        rows = sum(work.rows for work in batch)
        for name, array in outputs.items():
            if not array.shape or array.shape[0] != rows:
                raise ValueError(f"output {name!r} has shape {list(array.shape)} for a batch of {rows} rows")
        found: list[dict[str, Array] | Exception] = []
        start = 0
        for work in batch:
            found.append({name: array[start : start + work.rows] for name, array in outputs.items()})
            start += work.rows
        return found


class _Joined:
    """Puts the parts of a request that was cut together again; the first error is the request's."""

    def __init__(self, parts: int, done: Done) -> None:
        self._found: list[Outcome | None] = [None] * parts
        self._left = parts
        self._done = done
        self._lock = threading.Lock()

    def part(self, index: int) -> Done:
        """What the part `index` calls."""

        def done(outcome: Outcome) -> None:
            with self._lock:
                self._found[index] = outcome
                self._left -= 1
                if self._left:
                    return
            self._done(self._whole([each for each in self._found if each is not None]))

        return done

    @staticmethod
    def _whole(parts: list[Outcome]) -> Outcome:
        error = next((part.error for part in parts if part.error is not None), None)
        outputs = None
        if error is None:
            each = [part.outputs for part in parts if part.outputs is not None]
            outputs = {name: np.concatenate([outputs[name] for outputs in each]) for name in each[0]}
        queued_s = min(part.queued_s for part in parts)
        return Outcome(
            outputs, error, queued_s, max(part.run_s for part in parts), max(part.batch_rows for part in parts)
        )


def _signature(feeds: Feeds, *, batched: bool) -> tuple[tuple[int, ...], ...]:
    """What must be equal of requests that share a batch."""
    return tuple(array.shape[1:] for array in feeds.values()) if batched else ()


def is_batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether axis 0 of all inputs and outputs is one dynamic axis: rows may then come from several requests."""
    axes = {spec.shape[0] if spec.shape else 0 for spec in (*inputs, *outputs)}
    return len(axes) == 1 and isinstance(next(iter(axes)), str)
