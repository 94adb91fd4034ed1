"""Run a session for a while and watch the machine: is minute thirty like minute one, and what does it take?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploykit.contract.errors import UsageError
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds
from deploykit.judge.profiling import WARM_UP_RUNS, Percentiles
from deploykit_serving.monitor.energy import Energy, Window, energies
from deploykit_serving.monitor.monitor import Monitor
from deploykit_serving.monitor.reading import Absent, Snapshot

_WINDOWS = 10
_IDLE_WINDOWS = 3
_LONGEST_IDLE_S = 3.0
_PART = 2  # windows: the first and the last fifth are compared
_SAMPLE_S = 0.2
_MOST_SAMPLES = 3000
_MOST_KEPT = 20_000


@dataclass(frozen=True)
class Figure:
    """A reading over the whole watch.

    Attributes:
        metric, of, source: as in `Reading`.
        least, mean, most: of the samples; of what counts, None.
        grew: by how much it grew; of what does not count, None.
    """

    metric: str
    of: str
    source: str
    least: float | None = None
    mean: float | None = None
    most: float | None = None
    grew: float | None = None


@dataclass(frozen=True)
class Watched:
    """What was seen of a session and its machine.

    Attributes:
        seconds: of the runs; the idle time before and the warm-up are not in it.
        runs: back to back, on the golden inputs.
        first_ms, last_ms: latency in the first and in the last fifth of that time.
        figures: of every sensor that answered.
        energy: of an inference, by every sensor that can tell.
        absent: sources that are not here, and why.
        notes: what a reader must not miss.
    """

    seconds: float
    runs: int
    first_ms: Percentiles
    last_ms: Percentiles
    figures: tuple[Figure, ...]
    energy: tuple[Energy, ...]
    absent: tuple[Absent, ...]
    notes: tuple[str, ...] = ()


def watch(
    session: Session,
    samples: Sequence[Feeds],
    seconds: float,
    *,
    monitor: Monitor | None = None,
    tick: Callable[[float], None] = lambda _share: None,
) -> Watched:
    """Run samples in turns for some time, and read the machine's sensors meanwhile.

    Args:
        samples: inputs; at least one.
        seconds: of the runs; before them the machine is left idle for a tenth of that, 3 s at most.
        monitor: what is read; None for all that this machine has.
        tick: called with the share that is done, now and then.
    Raises:
        UsageError: there is nothing to run, or no time.
    """
    if not samples or seconds <= 0:
        raise UsageError(f"there is nothing to watch: {len(samples)} samples for {seconds:g} s")
    monitor = monitor or Monitor.here()
    idle = _idle(monitor, min(seconds / 10, _LONGEST_IDLE_S))
    for index in range(WARM_UP_RUNS):
        session.run(samples[index % len(samples)])
    windows, latencies = _runs(session, samples, seconds, monitor, tick)
    snapshots = [snapshot for window in windows for snapshot in window.snapshots]
    energy, notes = energies(windows, idle)
    return Watched(
        round(sum(window.seconds for window in windows), 3),
        sum(window.inferences for window in windows),
        _together(latencies[:_PART]),
        _together(latencies[-_PART:]),
        _figures(snapshots),
        energy,
        _absent(snapshots),
        notes,
    )


def _together(latencies: Sequence[_Latencies]) -> Percentiles:
    return Percentiles.of([value for each in latencies for value in each.kept_ms])


def _idle(monitor: Monitor, seconds: float) -> list[Window]:
    windows = []
    for _ in range(_IDLE_WINDOWS):
        first = monitor.snapshot()
        time.sleep(seconds / _IDLE_WINDOWS)
        windows.append(Window((first, monitor.snapshot()), 0))
    return windows


def _runs(
    session: Session, samples: Sequence[Feeds], seconds: float, monitor: Monitor, tick: Callable[[float], None]
) -> tuple[list[Window], list[_Latencies]]:
    """Windows of the watch, and how long the runs in each took."""
    windows: list[Window] = []
    latencies: list[_Latencies] = []
    every_s = max(_SAMPLE_S, seconds / _MOST_SAMPLES)
    began, runs = time.perf_counter(), 0
    for number in range(_WINDOWS):
        own = _Latencies()
        with _Sampler(monitor, every_s) as sampler:
            end = began + seconds * (number + 1) / _WINDOWS
            while own.count == 0 or time.perf_counter() < end:
                start = time.perf_counter()
                session.run(samples[runs % len(samples)])
                own.add((time.perf_counter() - start) * 1e3)
                runs += 1
        windows.append(Window(sampler.snapshots, own.count))
        latencies.append(own)
        tick((number + 1) / _WINDOWS)
    return windows, latencies


class _Latencies:
    """Latencies of any number of runs in bounded memory: from some number on every second, fourth, ... is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.kept_ms: list[float] = []
        self._stride = 1

    def add(self, milliseconds: float) -> None:
        """One more."""
        if self.count % self._stride == 0:
            self.kept_ms.append(milliseconds)
        self.count += 1
        if len(self.kept_ms) >= _MOST_KEPT:
            self.kept_ms = self.kept_ms[::2]
            self._stride *= 2


class _Sampler:
    """Takes snapshots at the begin, at the end, and on a thread in between."""

    def __init__(self, monitor: Monitor, every_s: float) -> None:
        self._monitor = monitor
        self._every_s = every_s
        self._found: list[Snapshot] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="deploykit-watch", daemon=True)

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """All so far, in order."""
        return tuple(self._found)

    def __enter__(self) -> _Sampler:
        self._found.append(self._monitor.snapshot())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._found.append(self._monitor.snapshot())

    def _sample(self) -> None:
        while not self._stop.wait(self._every_s):
            self._found.append(self._monitor.snapshot())


def _figures(snapshots: Sequence[Snapshot]) -> tuple[Figure, ...]:
    values: dict[tuple[str, str, str, bool], list[float]] = {}
    for snapshot in snapshots:
        for reading in snapshot.readings:
            key = (reading.metric, reading.of, reading.source, reading.counts)
            values.setdefault(key, []).append(reading.value)
    return tuple(
        Figure(metric, of, source, grew=found[-1] - found[0])
        if counts
        else Figure(metric, of, source, min(found), sum(found) / len(found), max(found))
        for (metric, of, source, counts), found in values.items()
    )


def _absent(snapshots: Sequence[Snapshot]) -> tuple[Absent, ...]:
    return tuple(dict.fromkeys(each for snapshot in snapshots for each in snapshot.absent))
