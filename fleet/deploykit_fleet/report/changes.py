"""What changed between two releases: figure by figure, with whether that is more than chance.

Figures are compared only where they mean the same: latency on the same kind of machine with the same evidence, threads
and batch; SQNR against the same kind of reference. What cannot be compared, or tested, is said to be so and is never a
finding. The p-values of all tests of a report are corrected together (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from deploykit.contract.precision import Evidence
from deploykit.judge import figures
from deploykit.judge.parity import TaskMetric
from deploykit.judge.profiling import Profile
from deploykit_fleet.outcome import FAILED, PASSED
from deploykit_fleet.report.entries import Book, Entry
from deploykit_fleet.report.layers import layers_of
from deploykit_fleet.report.significance import (
    LEVEL,
    Shift,
    holm,
    is_busy,
    normal_tail,
    p_lower,
    paired_shift,
    shift_of,
)

Verdict = Literal["worse", "better", "same", "untested", "elsewhere", "machine"]
WORSE: Verdict = "worse"
BETTER: Verdict = "better"
SAME: Verdict = "same"
UNTESTED: Verdict = "untested"
ELSEWHERE: Verdict = "elsewhere"
MACHINE: Verdict = "machine"

_SIZE = 0.01  # share by which a file grows before that is told
_DECIBEL = 1.0  # dB of SQNR that matter
_ROUNDING_DB = 80.0  # what is above is the rounding of float32
_PLACED = 0.001  # share of multiply-accumulates
_ESTIMATE = 0.05  # estimates have two significant digits
_DISAGREE = 0.01  # between a profile's percentile and that of its own runs
_DEVIATIONS = 1.96  # half of a 95 % interval
_NAMED = 3


@dataclass(frozen=True)
class Change:
    """One figure of one entry, before and now.

    Attributes:
        entry: its name.
        what: `state`, `latency`, `size`, `SQNR`, `metric`, `placement` or `profile`.
        old, new: as people read them.
        verdict: `worse` is a finding; `machine` where the float build that was measured beside it slowed as well.
        why: what the verdict rests on.
        shift: of a latency; None of others.
        p_value: corrected; None where nothing was tested.
        better: which way it went, where it was tested.
    """

    entry: str
    what: str
    old: str
    new: str
    verdict: Verdict
    why: str = ""
    shift: Shift | None = None
    p_value: float | None = None
    better: bool = False


@dataclass(frozen=True)
class Comparison:
    """Two books beside each other.

    Attributes:
        old: title of the older one.
        changes: of entries that are in both, in their order.
        added, gone: names of entries that are in one alone.
    """

    old: str
    changes: tuple[Change, ...]
    added: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Change, ...]:
        """What got worse."""
        return tuple(change for change in self.changes if change.verdict == WORSE)


def compare(old: Book, new: Book) -> Comparison:
    """Everything that can be compared of two books; two single artifacts are compared whatever they are called."""
    before = {entry.name: entry for entry in old.entries}
    if old.is_artifact and new.is_artifact:
        before = {new.entries[0].name: old.entries[0]}
    pairs = [(before[entry.name], entry) for entry in new.entries if entry.name in before]
    names = {entry.name for entry in new.entries}
    found = [change for pair in pairs for change in _changes(*pair)]
    return Comparison(
        dict(old.facts).get("made", old.title) if old.title == new.title else old.title,
        tuple(_corrected(found)),
        added=tuple(entry.name for entry in new.entries if entry.name not in before),
        gone=tuple(name for name in before if name not in names),
    )


def _changes(old: Entry, new: Entry) -> Iterator[Change]:
    yield from _state(old, new)
    yield from _latency(old, new)
    yield from _size(old, new)
    yield from _metric(old, new)
    yield from _sqnr(old, new)
    yield from _placement(old, new)
    yield from _disagreement(new)


def _corrected(found: Sequence[Change]) -> Iterator[Change]:
    """The verdicts of what was tested, when all tests are counted."""
    tested = [change.p_value for change in found if change.p_value is not None]
    corrected = iter(holm(tested))
    for change in found:
        if change.p_value is None:
            yield change
            continue
        p_value = next(corrected)
        verdict = _verdict(change) if p_value < LEVEL else SAME
        why = f"{change.why}; p = {p_value:.2g}" if change.why else f"p = {p_value:.2g}"
        yield replace(change, verdict=verdict, p_value=p_value, why=why)


def _verdict(change: Change) -> Verdict:
    """Of what is no chance."""
    if change.verdict == MACHINE:
        return MACHINE
    return BETTER if change.better else WORSE


def _state(old: Entry, new: Entry) -> Iterator[Change]:
    if old.state == new.state:
        return
    verdict = WORSE if new.state == FAILED or old.state == PASSED else BETTER if old.state == FAILED else SAME
    yield Change(new.name, "state", old.state, new.state, verdict, new.reason)


# -- latency ----------------------------------------------------------------------------------------------------


def _latency(old: Entry, new: Entry) -> Iterator[Change]:
    before, after = old.profile, new.profile
    if before is None or after is None:
        return
    shown = (_quickest(before), _quickest(after))
    if after.times and after.baseline_fingerprint and after.baseline_fingerprint == old.fingerprint:
        shift = paired_shift(after.times.baseline_ms, after.times.latency_ms)
        if shift is not None:
            yield _tested(new, shown, shift, f"measured in turns with the old one{_where(old, new)}")
            return
    apart = _apart(before, after)
    if apart:
        yield Change(new.name, "latency", *shown, ELSEWHERE, f"not compared: {apart}")
    elif after.evidence is Evidence.ESTIMATE:
        yield from _estimated(new, before, after, shown)
    else:
        yield _measured(old, new, before, after, shown)


def _measured(old: Entry, new: Entry, before: Profile, after: Profile, shown: tuple[str, str]) -> Change:
    untested = _untestable(before, after)
    shift = shift_of(before.times.latency_ms, after.times.latency_ms) if before.times and after.times else None
    if untested or shift is None:
        why = untested or "a profile has too few single runs; `deploykit profile --save` keeps more"
        return Change(new.name, "latency", *shown, UNTESTED, f"not tested: {why}")
    beside = _baseline_shift(before, after) if _same_graph(old, new) else None
    change = _tested(new, shown, shift, f"{_percent(shift.low)} to {_percent(shift.high)}{_where(old, new)}")
    if beside is not None and beside.estimate * 2 > shift.estimate > 0 and beside.p_more < LEVEL:
        told = f"the {after.baseline} beside it slowed by {_percent(beside.estimate)}: the machine, or the runtime"
        return replace(change, verdict=MACHINE, why=f"{change.why}; {told}")
    return change


def _untestable(before: Profile, after: Profile) -> str:
    """Why what the runs tell is no evidence; "" where it is."""
    if before.times is None or after.times is None:
        return "a profile has no single runs; `deploykit profile --save` keeps them"
    busy = [name for name, of in (("old", before.times), ("new", after.times)) if is_busy(of.latency_ms)]
    if not busy:
        return _throttled(before, after)
    return f"the machine was busy when the {' and the '.join(busy)} one was measured: `deploykit profile --save` again"


def _throttled(before: Profile, after: Profile) -> str:
    """Why a machine that slowed itself down tells nothing; "" where it did not, or does not tell."""
    hot = [name for name, of in (("old", before), ("new", after)) if of.conditions and of.conditions.throttled]
    return f"the machine throttled when the {' and the '.join(hot)} one was measured; let it cool down" if hot else ""


def _same_graph(old: Entry, new: Entry) -> bool:
    """Whether the float builds beside both compute the same: of another network they say nothing about the machine."""
    one, other = (entry.manifest.recipe if entry.manifest else None for entry in (old, new))
    return one is not None and other is not None and one.model.graph == other.model.graph


def _baseline_shift(before: Profile, after: Profile) -> Shift | None:
    if not (before.times and after.times) or before.baseline != after.baseline:
        return None
    return shift_of(before.times.baseline_ms, after.times.baseline_ms)


def _tested(entry: Entry, shown: tuple[str, str], shift: Shift, why: str) -> Change:
    faster = shift.p_less < shift.p_more
    return Change(entry.name, "latency", *shown, SAME, why, shift, shift.p_value, better=faster)


def _estimated(new: Entry, before: Profile, after: Profile, shown: tuple[str, str]) -> Iterator[Change]:
    was, now = before.latency_ms.p50, after.latency_ms.p50
    if was <= 0.0:
        return
    ratio = now / was - 1.0
    verdict = WORSE if ratio > _ESTIMATE else BETTER if ratio < -_ESTIMATE else SAME
    yield Change(new.name, "latency", *shown, verdict, f"{_percent(ratio)} by estimate, which does not waver")


def _quickest(profile: Profile) -> str:
    p50 = figures.milliseconds(profile.latency_ms.p50)
    return f"{p50} (estimate)" if profile.evidence is Evidence.ESTIMATE else p50


def _apart(before: Profile, after: Profile) -> str:
    """What makes two profiles no measurements of the same; "" for nothing."""
    facts = (
        ("evidence", before.evidence, after.evidence),
        ("machine", before.host, after.host),
        ("threads", before.threads, after.threads),
        ("batch size", before.batch_size, after.batch_size),
    )
    return ", ".join(f"other {name}" for name, was, now in facts if was != now)


def _where(old: Entry, new: Entry) -> str:
    """The layers whose time grew most, where the runtime tells it."""
    before = {row.name: row.microseconds for row in layers_of(old) if row.microseconds is not None}
    grown = [
        (row.microseconds - before.get(row.name, 0.0), row.name)
        for row in layers_of(new)
        if row.microseconds is not None and before
    ]
    total = sum(before.values())
    most = [f"{name} {more:+.0f} µs" for more, name in sorted(grown, reverse=True)[:_NAMED] if more > 0.02 * total]
    return f"; most in {', '.join(most)}" if most else ""


# -- what does not waver ----------------------------------------------------------------------------------------


def _size(old: Entry, new: Entry) -> Iterator[Change]:
    before, after = old.size_bytes, new.size_bytes
    if not before or after is None or before == after:
        return
    ratio = after / before - 1.0
    verdict = WORSE if ratio > _SIZE else BETTER if ratio < -_SIZE else SAME
    yield Change(new.name, "size", figures.size(before), figures.size(after), verdict, f"{_percent(ratio)}, counted")


def _placement(old: Entry, new: Entry) -> Iterator[Change]:
    if old.manifest is None or new.manifest is None:
        return
    before, after = old.manifest.achieved.as_asked_fraction, new.manifest.achieved.as_asked_fraction
    if abs(after - before) < _PLACED:
        return
    was = {row.name: row.precision for row in layers_of(old)}
    moved = [
        f"{row.name} is {row.precision}" for row in layers_of(new) if was.get(row.name) not in (None, row.precision)
    ]
    why = ", ".join(moved[:_NAMED]) + (f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else "")
    verdict = WORSE if after < before else BETTER
    yield Change(new.name, "placement", figures.share(before), figures.share(after), verdict, why or "counted")


# -- accuracy ---------------------------------------------------------------------------------------------------


def _metric(old: Entry, new: Entry) -> Iterator[Change]:
    before, after = (entry.parity.metric if entry.parity else None for entry in (old, new))
    if before is None or after is None or before == after:
        return
    shown = figures.plain(before.artifact), figures.plain(after.artifact)
    deviation = _deviation(before, after)
    if deviation is None:
        yield Change(
            new.name, "metric", *shown, UNTESTED, "not tested: `evaluate` returns one number, no score a sample"
        )
        return
    z = (after.drop - before.drop) / deviation
    why = f"the drop went from {figures.plain(before.drop)} to {figures.plain(after.drop)}"
    p_value = min(1.0, 2.0 * normal_tail(abs(z)))
    yield Change(new.name, "metric", *shown, SAME, why, p_value=p_value, better=z < 0.0)


def _deviation(before: TaskMetric, after: TaskMetric) -> float | None:
    """Standard deviation of the difference of two drops, of the widths of their intervals."""
    if before.fall is None or after.fall is None:
        return None
    return math.hypot(before.fall.resolves, after.fall.resolves) / _DEVIATIONS or None


def _sqnr(old: Entry, new: Entry) -> Iterator[Change]:
    before, after = old.parity, new.parity
    if before is None or after is None or before.sqnr_db is None or after.sqnr_db is None:
        return
    fell = before.sqnr_db - after.sqnr_db
    shown = figures.decibel(before.sqnr_db), figures.decibel(after.sqnr_db)
    if abs(fell) < _DECIBEL or min(before.sqnr_db, after.sqnr_db) > _ROUNDING_DB:
        return
    if (before.evidence, before.data, before.samples) != (after.evidence, after.data, after.samples):
        why = "not compared: other evidence or other samples"
        yield Change(new.name, "SQNR", *shown, ELSEWHERE, why)
        return
    one, other = (spread.sample_db if spread else () for spread in (before.spread, after.spread))
    p_value = p_lower(one, other) if fell > 0.0 else p_lower(other, one)
    if p_value is None:
        yield Change(new.name, "SQNR", *shown, UNTESTED, "not tested: too few samples")
        return
    why = f"{-fell:+.1f} dB over {len(other)} samples{_quieter(old, new)}"
    yield Change(new.name, "SQNR", *shown, SAME, why, p_value=min(1.0, 2.0 * p_value), better=fell < 0.0)


def _quieter(old: Entry, new: Entry) -> str:
    """The layers whose SQNR fell most."""
    before = {row.name: row.sqnr_db for row in layers_of(old) if row.sqnr_db is not None}
    after = ((row.name, row.sqnr_db) for row in layers_of(new) if row.sqnr_db is not None and row.name in before)
    fell = sorted((now - before[name], name) for name, now in after)
    most = [f"{name} {less:+.1f} dB" for less, name in fell[:_NAMED] if less < -_DECIBEL]
    return f"; most in {', '.join(most)}" if most else ""


def _disagreement(new: Entry) -> Iterator[Change]:
    """A profile whose percentile is not that of its runs was altered, and neither can be believed."""
    profile = new.profile
    if profile is None or profile.times is None or not profile.times.latency_ms:
        return
    told, own = profile.latency_ms.p50, float(np.median(profile.times.latency_ms))
    if abs(told - own) > _DISAGREE * max(own, 1e-9):
        shown = figures.milliseconds(told), figures.milliseconds(own)
        yield Change(
            new.name, "profile", *shown, WORSE, "the profile's p50 is not that of its own runs: it was altered"
        )


def _percent(share: float) -> str:
    return f"{100.0 * share:+.1f} %"
