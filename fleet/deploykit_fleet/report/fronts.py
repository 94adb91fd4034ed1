"""Which entries nothing beats in latency, size and accuracy together, among those whose figures compare.

Figures of different evidence never share a front, and neither do those of another model, machine, number of threads or
batch size: each such set has a front of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.contract.precision import Evidence
from deploykit_fleet.report.entries import Entry


@dataclass(frozen=True)
class Point:
    """One entry on a front's plane.

    Attributes:
        entry: its name.
        label: what tells it from the others of the front.
        latency_ms: median of a run.
        accuracy: task metric, or SQNR in dB; higher is better.
        size_bytes: of the payload.
        best: nothing in the set is as good in all three and better in one.
        state: of the entry.
    """

    entry: str
    label: str
    latency_ms: float
    accuracy: float
    size_bytes: int
    best: bool
    state: str


@dataclass(frozen=True)
class Front:
    """Points whose figures compare.

    Attributes:
        model: of all of them.
        speed, quality: evidence of latency, and of accuracy.
        where: machine, threads and batch.
        unit: `task metric` or `SQNR in dB`.
        points: by latency.
    """

    model: str
    speed: str
    quality: str
    where: str
    unit: str
    points: tuple[Point, ...]


def fronts_of(entries: Sequence[Entry]) -> tuple[Front, ...]:
    """One front for each set of entries that compare, larger sets first; sets of one are left out."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        key = _key(entry)
        if key is not None:
            groups.setdefault(key, []).append(entry)
    kept = sorted((item for item in groups.items() if len(item[1]) > 1), key=lambda item: -len(item[1]))
    return tuple(_front(key, group) for key, group in kept)


def _key(entry: Entry) -> tuple[str, ...] | None:
    """What must be the same for figures to compare; None where one of the figures is missing."""
    profile, accuracy = entry.profile, _accuracy(entry)
    if profile is None or entry.parity is None or accuracy is None or profile.latency_ms.p50 <= 0.0:
        return None
    measured = f"{profile.host.kind}, {profile.threads} thread{'' if profile.threads == 1 else 's'}"
    told = profile.host.os if profile.evidence is Evidence.ESTIMATE else measured
    where = f"{told}, batch {profile.batch_size}"
    apart = f"{entry.identity} {profile.host}"
    return entry.model, str(profile.evidence), str(entry.parity.evidence), where, accuracy[0], apart


def _accuracy(entry: Entry) -> tuple[str, float] | None:
    if entry.parity is None:
        return None
    if entry.parity.metric is not None:
        return "task metric", entry.parity.metric.artifact
    return None if entry.parity.sqnr_db is None else ("SQNR in dB", entry.parity.sqnr_db)


def _front(key: tuple[str, ...], group: Sequence[Entry]) -> Front:
    figures = {entry.name: _figures(entry) for entry in group}
    targets, precisions = {entry.target for entry in group}, [entry.precision for entry in group]
    points = []
    for entry in group:
        own = figures[entry.name]
        beaten = any(_beats(other, own) for other in figures.values())
        label = _label(entry, alone=len(targets) == 1, unique=len(set(precisions)) == len(precisions))
        latency, size, loss = own
        points.append(Point(entry.name, label, latency, -loss, int(size), not beaten, entry.state))
    model, speed, quality, where, unit, _ = key
    return Front(model, speed, quality, where, unit, tuple(sorted(points, key=lambda point: point.latency_ms)))


def _label(entry: Entry, *, alone: bool, unique: bool) -> str:
    if alone and unique:
        return entry.precision
    return f"{entry.target} {entry.precision}" if not alone else entry.name


def _figures(entry: Entry) -> tuple[float, float, float]:
    """Latency, size and lack of accuracy: less is better of each."""
    accuracy = _accuracy(entry)
    assert entry.profile is not None and accuracy is not None  # `_key` saw to it
    return entry.profile.latency_ms.p50, float(entry.size_bytes or 0), -accuracy[1]


def _beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
