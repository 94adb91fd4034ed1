"""`tune-serving`: instances x threads x batch that answer most, under a limit of memory and one of p99.

What a setting is worth is measured: a server of its own is started with it, put under load over loopback, and asked
for its peak memory. Which settings are measured is decided here. What is known not to pass is left out: where a setting
takes too much memory, so does one that has as much of everything and more of something; where p99 is missed by far,
so it is with larger batches. The rest is measured shortly, and the best few again, longer and in turns, so that noise
does not choose. Nothing is chosen whose measured peak was ever above the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from deploykit.contract.errors import PerformanceError, UsageError
from deploykit.contract.host import usable_cores

_FINALISTS = 5
_NEAR = 0.75  # of the most that was answered on the first look: what answers less is not looked at again
_FINAL_TURNS = 3
_FAR = 1.5  # of the p99 that is allowed: larger batches are not tried
_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, order=True)
class Candidate:
    """A setting that is tried."""

    instances: int
    threads: int
    max_batch: int

    def has_as_much_as(self, other: Candidate) -> bool:
        """Whether it has as much of everything as `other`."""
        mine = (self.instances, self.threads, self.max_batch)
        return all(a >= b for a, b in zip(mine, (other.instances, other.threads, other.max_batch), strict=True))


@dataclass(frozen=True)
class Measured:
    """What a candidate reached.

    Attributes:
        rows_per_s: answered.
        p99_ms: of the answers.
        peak_bytes: resident memory of the server at its most.
    """

    candidate: Candidate
    rows_per_s: float
    p99_ms: float
    peak_bytes: int


@dataclass(frozen=True)
class Limits:
    """What must hold; None for any."""

    max_memory_bytes: int | None = None
    max_p99_ms: float | None = None

    def misses(self, found: Measured) -> str:
        """Which limit a candidate misses, in words; "" where it passes."""
        if self.max_memory_bytes is not None and found.peak_bytes > self.max_memory_bytes:
            return f"{found.peak_bytes / 2**20:.0f} MiB of {self.max_memory_bytes / 2**20:.0f} MiB"
        if self.max_p99_ms is not None and found.p99_ms > self.max_p99_ms:
            return f"p99 {found.p99_ms:.3g} ms of {self.max_p99_ms:.3g} ms"
        return ""


@dataclass(frozen=True)
class Tried:
    """A candidate and what became of it: `measured` is None where it was left out, `reason` says why it lost."""

    candidate: Candidate
    measured: Measured | None
    reason: str


@dataclass(frozen=True)
class Tuned:
    """The end of a search.

    Attributes:
        best: answers most of those that pass.
        front: of those that pass, each that no other beats in throughput, p99 and memory at once; fastest first.
        tried: all, in the order in which they were looked at.
    """

    best: Measured
    front: tuple[Measured, ...]
    tried: tuple[Tried, ...]


class Measure(Protocol):
    """Measures candidates; what it raises ends the search."""

    def once(self, candidate: Candidate) -> Measured:
        """A first, short look."""

    def in_turns(self, candidates: Sequence[Candidate], turns: int) -> Mapping[Candidate, Sequence[Measured]]:
        """Several longer looks at each, in turns: what disturbs one disturbs all alike."""


def candidates(*, batched: bool, cores: int | None = None, max_batch: int = _BATCHES[-1]) -> list[Candidate]:
    """What could be tried: powers of two and the number of cores; no more threads than cores altogether.

    Args:
        batched: whether requests may share a run.
        cores: None for those that this process may use.
        max_batch: largest batch.
    """
    cores = cores or usable_cores()
    counts = sorted({*(1 << power for power in range(cores.bit_length()) if 1 << power <= cores), cores})
    batches = [size for size in _BATCHES if size <= max_batch] if batched else [1]
    return sorted(
        Candidate(instances, threads, batch)
        for instances in counts
        for threads in counts
        if instances * threads <= cores
        for batch in batches
    )


def search(
    among: Iterable[Candidate], measure: Measure, limits: Limits, *, tell: Callable[[Tried], None] = lambda _: None
) -> Tuned:
    """Find the candidate that answers most within the limits.

    Args:
        among: all that may be tried.
        measure: see `Measure`.
        limits: what must hold.
        tell: called with each that was tried or left out.
    Raises:
        UsageError: there is nothing to try.
        PerformanceError: none passes; the message has the nearest.
    """
    seen: list[Tried] = []
    for candidate in sorted(among, key=lambda one: (one.max_batch, one.instances * one.threads, one)):
        reason = _hopeless(candidate, seen, limits)
        if reason:
            tried = Tried(candidate, None, reason)
        else:
            found = measure.once(candidate)
            tried = Tried(candidate, found, limits.misses(found))
        seen.append(tried)
        tell(tried)
    if not seen:
        raise UsageError("there is no setting to try")
    passing = [one.measured for one in seen if one.measured is not None and not one.reason]
    passing = _looked_at_again(passing, measure, limits)
    if not passing:
        raise _nothing_passes(seen, limits)
    best = passing[0]
    return Tuned(best, _front(passing), tuple(seen))


def _hopeless(candidate: Candidate, seen: Sequence[Tried], limits: Limits) -> str:
    """Why a candidate cannot pass, as far as those before tell; "" where it may."""
    for one in seen:
        found = one.measured
        if found is None:
            continue
        memory, p99 = limits.max_memory_bytes, limits.max_p99_ms
        if memory is not None and found.peak_bytes > memory and candidate.has_as_much_as(found.candidate):
            return f"{_words(found.candidate)} takes too much memory already"
        same = replace(candidate, max_batch=found.candidate.max_batch) == found.candidate
        if p99 is not None and same and candidate.max_batch > found.candidate.max_batch and found.p99_ms > _FAR * p99:
            return f"p99 of {_words(found.candidate)} is {found.p99_ms:.3g} ms already"
    return ""


def _looked_at_again(passing: list[Measured], measure: Measure, limits: Limits) -> list[Measured]:
    """The best few measured longer and in turns, the best of them first, and then those that were not looked at again.

    Of memory the most that was seen counts, of the rest the median. Where all of them miss a limit on the longer look,
    the next few are looked at.
    """
    left = sorted(passing, key=lambda one: -one.rows_per_s)
    while left:
        near = sum(one.rows_per_s >= _NEAR * left[0].rows_per_s for one in left)
        finalists, left = left[: min(near, _FINALISTS)], left[min(near, _FINALISTS) :]
        turns = measure.in_turns([one.candidate for one in finalists], _FINAL_TURNS)
        settled = [_settled(turns[one.candidate], one.peak_bytes) for one in finalists]
        kept = [one for one in settled if not limits.misses(one)]
        if kept:
            return [*sorted(kept, key=lambda one: -one.rows_per_s), *left]
    return []


def _settled(found: Sequence[Measured], first_peak: int) -> Measured:
    middle = len(found) // 2
    return Measured(
        found[0].candidate,
        sorted(one.rows_per_s for one in found)[middle],
        sorted(one.p99_ms for one in found)[middle],
        max(first_peak, *(one.peak_bytes for one in found)),
    )


def _front(passing: Sequence[Measured]) -> tuple[Measured, ...]:
    def beaten(one: Measured) -> bool:
        mine = (-one.rows_per_s, one.p99_ms, one.peak_bytes)
        others = ((-other.rows_per_s, other.p99_ms, other.peak_bytes) for other in passing)
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in others)

    return tuple(sorted((one for one in passing if not beaten(one)), key=lambda one: -one.rows_per_s))


def _nothing_passes(seen: Sequence[Tried], limits: Limits) -> PerformanceError:
    measured = [one.measured for one in seen if one.measured is not None]
    least = min(measured, key=lambda one: (one.peak_bytes if limits.max_memory_bytes else 0, one.p99_ms))
    miss = limits.misses(least) or "when looked at longer"
    return PerformanceError(
        f"no setting passes; the nearest, {_words(least.candidate)}, misses it: {miss}",
        hint="raise --max-memory or --max-p99-ms, or export a smaller precision",
    )


def _words(candidate: Candidate) -> str:
    many = "instances" if candidate.instances > 1 else "instance"
    return f"{candidate.instances} {many} x {candidate.threads} threads x batch {candidate.max_batch}"
