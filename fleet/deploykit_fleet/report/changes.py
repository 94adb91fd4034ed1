"""What changed between two releases: figure by figure, with whether that is more than chance.

Figures are compared only where they mean the same: see `latency.py` and `accuracy.py`; what does not waver (state,
size, placement) is here. What cannot be compared, or tested, is said to be so and is never a finding. The p-values of
all tests of a report are corrected together (Holm).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deploykit.judge import figures
from deploykit_fleet.outcome import FAILED, PASSED
from deploykit_fleet.report.accuracy import accuracy_changes
from deploykit_fleet.report.entries import Book, Entry
from deploykit_fleet.report.latency import latency_changes
from deploykit_fleet.report.layers import layers_of
from deploykit_fleet.report.significance import LEVEL, holm
from deploykit_fleet.report.verdicts import BETTER, MACHINE, SAME, WORSE, Change, Comparison, Verdict, percent

_SIZE = 0.01  # share by which a file grows before that is told
_PLACED = 0.001  # share of multiply-accumulates
_NAMED = 3


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
    yield from latency_changes(old, new)
    yield from _size(old, new)
    yield from accuracy_changes(old, new)
    yield from _placement(old, new)


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
    verdict = WORSE if new.state == FAILED or old.state == PASSED else BETTER if new.state == PASSED else SAME
    yield Change(new.name, "state", old.state, new.state, verdict, new.reason)


def _size(old: Entry, new: Entry) -> Iterator[Change]:
    before, after = old.size_bytes, new.size_bytes
    if not before or after is None or before == after:
        return
    ratio = after / before - 1.0
    verdict = WORSE if ratio > _SIZE else BETTER if ratio < -_SIZE else SAME
    yield Change(new.name, "size", figures.size(before), figures.size(after), verdict, f"{percent(ratio)}, counted")


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
