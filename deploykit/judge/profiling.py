"""Profile: warm-up, percentiles, throughput, memory and size of a session, measured and never guessed.

Where a float build of the same model is at hand, both are measured in turns in the same loop, so that the
'worth it' ratio does not depend on what else the machine was doing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deploykit.contract.findings import Finding
from deploykit.contract.host import Host, this_host
from deploykit.contract.precision import Evidence
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds, TensorSpec
from deploykit.judge.conditions import Conditions

MIN_RUNS = 20
WARM_UP_RUNS = 5
TURN_RUNS = 10
SETTLING_RUNS = 2
SETTLING_SECONDS = 0.03
CALM, PATIENCE = 1.1, 3.0
_DIGITS = 4


def rounded(value: float, digits: int = 2) -> float:
    """A figure that was computed and not measured, in the significant digits that it can mean."""
    return float(f"{value:.{digits}g}")


@dataclass(frozen=True)
class Percentiles:
    """Latency of one run, in the unit of the field's name.

    Attributes:
        p50, p90, p99: percentiles (linear interpolation).
        mean, minimum: over the same runs.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    minimum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Summarise at least one value."""
        p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
        return cls(p50, p90, p99, float(np.mean(values)), float(np.min(values)))


@dataclass(frozen=True)
class Times:
    """Every measured run, in the order of measuring, so that two profiles can be compared by a test and not by eye.

    Attributes:
        latency_ms: the latency of each run of the artifact, in four significant digits.
        baseline_ms: the times of each run of the baseline, in turns with those; empty where there was none.
        per_turn: how many runs follow each other before it is the other's turn.
    """

    latency_ms: tuple[float, ...]
    baseline_ms: tuple[float, ...] = ()
    per_turn: int = TURN_RUNS

    @classmethod
    def of(cls, own: Sequence[float], baseline: Sequence[float] = ()) -> Times:
        """Keep what was measured; clocks have no more digits than are kept."""
        latency, other = (tuple(rounded(value, _DIGITS) for value in values) for values in (own, baseline))
        return cls(latency, other)


@dataclass(frozen=True)
class Sustained:
    """Speed in the first and in the last minute of a longer run; `deploykit.judge.sustained` measures it.

    Attributes:
        seconds: the time that the whole run took.
        window_s: length of the two windows: a minute, or a tenth of a run that is shorter than ten.
        runs: in all.
        first_ms, last_ms: latency of one run in the first and in the last window.
    """

    seconds: float
    window_s: float
    runs: int
    first_ms: Percentiles
    last_ms: Percentiles

    @property
    def slowdown(self) -> float:
        """Median of the last window over that of the first: 1.2 is a fifth slower."""
        return self.last_ms.p50 / self.first_ms.p50


@dataclass(frozen=True)
class Profile:
    """Speed and size of an artifact.

    Attributes:
        latency_ms: the latency of one run at the batch size of the golden inputs.
        batch_size: rows per run in `latency_ms`.
        throughput_per_s: samples per second at that batch size, runs back to back.
        throughput_by_batch: samples per second by batch size; other sizes only where the batch axis is dynamic.
        peak_memory_bytes: growth of a fresh process that opens and runs the artifact; None where it cannot be told.
        size_bytes: the size of the payload files.
        evidence: `device` where measured on the device; `estimate` where computed.
        threads: the number of threads that the runtime was given; 0 in an estimate.
        warm_up, runs: how many runs were thrown away and measured; 0 in an estimate.
        host: the machine; in an estimate the architecture and, as `os`, the table that it was computed from.
        op_times: median microseconds per operator, slowest first; empty where the runtime cannot tell.
        baseline: what `worth_it` compares with, such as "fp32 artifact"; "" where there was none.
        baseline_latency_ms: the latency of that baseline, measured in the same loop.
        latency_by_threads_ms: latency for each number of threads, measured in turns; empty where only `threads` was
            measured.
        operators: how many of each kind the deployed model has; empty where the runtime cannot tell.
        findings: what a reader must not miss, such as an artifact that is slower than its float build, and why.
        times: the times of the single runs; None of an estimate, and where a device tells percentiles alone.
        baseline_fingerprint: the fingerprint of the baseline where that is an artifact on disk; "" of a float build
            that was made for the measurement.
        conditions: temperature, clock and throttling meanwhile; None where nobody looked.
        sustained: the first minute against the last of a longer run; None where none was asked for.
    """

    latency_ms: Percentiles
    batch_size: int
    throughput_per_s: float
    throughput_by_batch: dict[str, float]
    peak_memory_bytes: int | None
    size_bytes: int
    evidence: Evidence
    threads: int
    warm_up: int
    runs: int
    host: Host
    op_times: tuple[OpTime, ...] = ()
    baseline: str = ""
    baseline_latency_ms: Percentiles | None = None
    baseline_size_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())
    latency_by_threads_ms: dict[str, Percentiles] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    times: Times | None = None
    baseline_fingerprint: str = ""
    conditions: Conditions | None = None
    sustained: Sustained | None = None

    @property
    def worth_it(self) -> float | None:
        """Baseline latency over own latency (p50): above 1 the artifact is faster. None without a baseline.

        Of an estimate it has two significant digits, as the two latencies have.
        """
        if self.baseline_latency_ms is None or not self.latency_ms.p50:
            return None
        ratio = self.baseline_latency_ms.p50 / self.latency_ms.p50
        return rounded(ratio) if self.evidence is Evidence.ESTIMATE else ratio


@dataclass(frozen=True)
class Effort:
    """How long to measure, and with what.

    Attributes:
        seconds: wall time that the measured runs of one loop may take together.
        max_runs: upper bound on measured runs of each session.
        batch_sizes: for throughput, where the batch axis is dynamic.
        threads: for the runtime; None for all cores that this process may use.
    """

    seconds: float = 1.0
    max_runs: int = 200
    batch_sizes: tuple[int, ...] = (1, 4, 8)
    threads: int | None = None


DEFAULT_EFFORT = Effort()


def measure_interleaved(sessions: Sequence[Session], feeds: Feeds, effort: Effort) -> tuple[list[list[float]], int]:
    """Run the sessions in turns, a few runs each, until the time is used up (but at least `MIN_RUNS` runs each).

    Where something else kept the machine busy, up to `PATIENCE` times as long: until half of the first session's runs
    lie within `CALM` of the quickest.

    A runtime's idle threads spin for a while after a run, on the cores that the next session needs: the runs of the
    first `SETTLING_SECONDS` of a turn (two at least) are not counted.

    Returns:
        Milliseconds of every measured run per session, and the number of warm-up runs of each.
    """
    for session in sessions:
        session.times_ms(feeds, runs=WARM_UP_RUNS)
    times: list[list[float]] = [[] for _ in sessions]
    began = time.perf_counter()
    while len(times[0]) < effort.max_runs and _goes_on(times[0], time.perf_counter() - began, effort.seconds):
        for session, own in zip(sessions, times, strict=True):
            if len(sessions) > 1:
                _settle(session, feeds)
            own.extend(session.times_ms(feeds, runs=min(TURN_RUNS, effort.max_runs - len(own))))
    return times, WARM_UP_RUNS


def _goes_on(times: Sequence[float], spent: float, seconds: float) -> bool:
    """Whether more runs are wanted after `spent` seconds."""
    if len(times) < MIN_RUNS or spent < seconds:
        return True
    calm = sum(each <= CALM * min(times) for each in times)
    return spent < PATIENCE * seconds and 2 * calm < len(times)


def _settle(session: Session, feeds: Feeds) -> None:
    """Run until the threads of other sessions have gone to sleep."""
    began, runs = time.perf_counter(), 0
    while runs < SETTLING_RUNS or time.perf_counter() - began < SETTLING_SECONDS:
        session.times_ms(feeds, runs=1)
        runs += 1


def throughput_by_batch(session: Session, feeds: Feeds, effort: Effort) -> dict[str, float]:
    """Samples per second, runs back to back; sizes other than the given one only where the batch axis is dynamic."""
    own = batch_size(session.inputs, feeds)
    if not has_dynamic_batch(session.inputs):  # axis 0 may be the batch of one input and the queries of a mask
        return {str(own): _throughput(session, feeds, own, effort.seconds / 4)}
    sizes = sorted({own, *effort.batch_sizes})
    return {str(size): _throughput(session, resize_batch(feeds, size), size, effort.seconds / 4) for size in sizes}


def _throughput(session: Session, feeds: Feeds, size: int, seconds: float) -> float:
    session.times_ms(feeds, runs=1)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds * 1e3:
        times += session.times_ms(feeds, runs=3)
    return len(times) * size / (sum(times) / 1e3)


def has_dynamic_batch(inputs: Sequence[TensorSpec]) -> bool:
    """Whether axis 0 of every input is dynamic."""
    return bool(inputs) and all(spec.shape and isinstance(spec.shape[0], str) for spec in inputs)


def batch_size(inputs: Sequence[TensorSpec], feeds: Feeds) -> int:
    """Rows per run: axis 0 of the first input, 1 for scalars."""
    shape = feeds[inputs[0].name].shape
    return int(shape[0]) if shape else 1


def resize_batch(feeds: Feeds, size: int) -> dict[str, np.ndarray]:
    """Repeat or cut rows so that axis 0 of every array is `size`."""
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in feeds.items()}


@dataclass(frozen=True)
class Measuring:
    """What is known of an artifact before it is timed.

    Attributes:
        size_bytes: the size of its payload.
        evidence: what running here proves; `emulator` sessions must not be timed.
        memory_bytes: the peak memory of a fresh process that runs it; None where the session's own process says that,
            or nobody can.
        effort: how long to measure.
        host: the machine that runs it; None for this one.
        notes: what the profile says beside its figures.
    """

    size_bytes: int
    evidence: Evidence
    memory_bytes: int | None = None
    effort: Effort = DEFAULT_EFFORT
    host: Host | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """A float build of the same model, measured in turns with the artifact."""

    name: str
    session: Session
    size_bytes: int


def measure(session: Session, feeds: Feeds, measuring: Measuring, baseline: Baseline | None = None) -> Profile:
    """Profile one open session, in turns with a baseline where given.

    Args:
        feeds: inputs of the measured runs.
    Raises:
        ValueError: the evidence is `emulator`, whose latency means nothing.
    """
    if measuring.evidence is Evidence.EMULATOR:
        raise ValueError("latency under emulation is meaningless and is not measured")
    sessions = [session] if baseline is None else [session, baseline.session]
    times, warm_up = measure_interleaved(sessions, feeds, measuring.effort)
    by_batch = throughput_by_batch(session, feeds, measuring.effort)
    size = batch_size(session.inputs, feeds)
    return Profile(
        latency_ms=Percentiles.of(times[0]),
        batch_size=size,
        throughput_per_s=by_batch[str(size)],
        throughput_by_batch=by_batch,
        peak_memory_bytes=measuring.memory_bytes if session.peak_memory_bytes is None else session.peak_memory_bytes,
        size_bytes=measuring.size_bytes,
        evidence=measuring.evidence,
        threads=session.threads,
        warm_up=warm_up,
        runs=len(times[0]),
        host=measuring.host or this_host(),
        op_times=session.op_times(feeds, runs=5),
        baseline=baseline.name if baseline else "",
        baseline_latency_ms=Percentiles.of(times[1]) if baseline else None,
        baseline_size_bytes=baseline.size_bytes if baseline else None,
        notes=measuring.notes,
        times=Times.of(*times),
    )
