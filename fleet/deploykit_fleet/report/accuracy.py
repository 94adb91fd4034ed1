"""Whether an artifact became less accurate: by the samples of its SQNR, and by the interval of its task metric."""

from __future__ import annotations

import math
from collections.abc import Iterator

from deploykit.judge import figures
from deploykit.judge.parity import TaskMetric
from deploykit_fleet.report.entries import Entry
from deploykit_fleet.report.layers import layers_of
from deploykit_fleet.report.significance import normal_tail, p_lower
from deploykit_fleet.report.verdicts import ELSEWHERE, SAME, UNTESTED, Change

_DECIBEL = 1.0  # dB of SQNR that matter
_ROUNDING_DB = 80.0  # what is above is the rounding of float32
_DEVIATIONS = 1.96  # half of a 95 % interval
_NAMED = 3


def accuracy_changes(old: Entry, new: Entry) -> Iterator[Change]:
    """Task metric and SQNR, where both have them."""
    yield from _metric(old, new)
    yield from _sqnr(old, new)


def _metric(old: Entry, new: Entry) -> Iterator[Change]:
    before, after = (entry.parity.metric if entry.parity else None for entry in (old, new))
    if before is None or after is None or before == after:
        return
    shown = figures.plain(before.artifact), figures.plain(after.artifact)
    deviation = _deviation(before, after)
    if deviation is None:
        why = "not tested: `evaluate` returns one number, and no score for each sample"
        yield Change(new.name, "metric", *shown, UNTESTED, why)
        return
    z = (after.drop - before.drop) / deviation
    why = f"the drop from the float model's went from {before.drop:.3g} to {after.drop:.3g}"
    if before.reference != after.reference:
        why += f", and the float model's own metric from {before.reference:.4g} to {after.reference:.4g}"
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
