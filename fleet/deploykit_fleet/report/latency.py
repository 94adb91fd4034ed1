"""Whether an artifact became slower: by its single runs, where they tell it.

Runs are compared of one kind of machine, with the same evidence, threads and batch; in pairs where both artifacts were
measured in turns. A machine that was busy or too hot tells nothing, and where the float build of the same network
slowed as well, it was not the artifact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from deploykit.contract.precision import Evidence
from deploykit.judge import figures
from deploykit.judge.profiling import Profile
from deploykit_fleet.report.entries import Entry
from deploykit_fleet.report.layers import layers_of
from deploykit_fleet.report.significance import LEVEL, Shift, is_busy, paired_shift, shift_of
from deploykit_fleet.report.verdicts import BETTER, ELSEWHERE, MACHINE, SAME, UNTESTED, WORSE, Change, percent

_ESTIMATE = 0.05  # estimates have two significant digits
_DISAGREE = 0.01  # between a profile's percentile and that of its own runs
_NAMED = 3


def latency_changes(old: Entry, new: Entry) -> Iterator[Change]:
    """The change of latency, where both have one; and whether the new profile was altered."""
    before, after = old.profile, new.profile
    if after is not None:
        yield from _disagreement(new, after)
    if before is not None and after is not None:
        yield _change(old, new, before, after)


def _change(old: Entry, new: Entry, before: Profile, after: Profile) -> Change:
    shown = (_median(before), _median(after))
    if after.times and after.baseline_fingerprint and after.baseline_fingerprint == old.fingerprint:
        shift = paired_shift(after.times.baseline_ms, after.times.latency_ms)
        if shift is not None:
            return _tested(new, shown, shift, f"measured in turns with the old one{_where(old, new)}")
    apart = _apart(before, after)
    if apart:
        return Change(new.name, "latency", *shown, ELSEWHERE, f"not compared: {apart}")
    if after.evidence is Evidence.ESTIMATE:
        return _estimated(new, before, after, shown)
    return _measured(old, new, before, after, shown)


def _measured(old: Entry, new: Entry, before: Profile, after: Profile, shown: tuple[str, str]) -> Change:
    untested = _untestable(before, after)
    shift = shift_of(before.times.latency_ms, after.times.latency_ms) if before.times and after.times else None
    if untested or shift is None:
        why = untested or "a profile has too few single runs; `deploykit profile --save` keeps more"
        return Change(new.name, "latency", *shown, UNTESTED, f"not tested: {why}")
    change = _tested(new, shown, shift, f"{percent(shift.low)} to {percent(shift.high)}{_where(old, new)}")
    beside = _baseline_shift(before, after) if _same_graph(old, new) else None
    if beside is not None and _goes_with(beside, shift):
        told = f"the {after.baseline} beside it moved by {percent(beside.estimate)}: the machine, or the runtime"
        return replace(change, verdict=MACHINE, why=f"{change.why}; {told}")
    return change


def _goes_with(beside: Shift, shift: Shift) -> bool:
    """Whether the float build went the same way, at least half as far, and surely."""
    same_way = beside.estimate * shift.estimate > 0.0
    return same_way and 2.0 * abs(beside.estimate) > abs(shift.estimate) and min(beside.p_more, beside.p_less) < LEVEL


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


def _estimated(new: Entry, before: Profile, after: Profile, shown: tuple[str, str]) -> Change:
    was, now = before.latency_ms.p50, after.latency_ms.p50
    ratio = now / was - 1.0 if was > 0.0 else 0.0
    verdict = WORSE if ratio > _ESTIMATE else BETTER if ratio < -_ESTIMATE else SAME
    return Change(new.name, "latency", *shown, verdict, f"{percent(ratio)} by estimate, which does not waver")


def _median(profile: Profile) -> str:
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
    before, after = _times(old), _times(new)
    total = sum(before.values())
    grown = sorted(((spent - before.get(name, 0.0), name) for name, spent in after.items()), reverse=True)
    most = [f"{name} {more:+.0f} µs" for more, name in grown[:_NAMED] if 0.0 < 0.02 * total < more]
    return f"; most in {', '.join(most)}" if most else ""


def _times(entry: Entry) -> dict[str, float]:
    """Microseconds by name; one module may have several operators."""
    found: dict[str, float] = {}
    for row in layers_of(entry):
        if row.microseconds is not None:
            found[row.name] = found.get(row.name, 0.0) + row.microseconds
    return found


def _disagreement(new: Entry, profile: Profile) -> Iterator[Change]:
    """A profile whose percentile is not that of its runs was altered, and neither can be believed."""
    if profile.times is None or not profile.times.latency_ms:
        return
    told, own = profile.latency_ms.p50, float(np.median(profile.times.latency_ms))
    if abs(told - own) > _DISAGREE * max(own, 1e-9):
        shown = figures.milliseconds(told), figures.milliseconds(own)
        yield Change(new.name, "profile", *shown, WORSE, "its p50 is not that of its own runs: it was altered")
