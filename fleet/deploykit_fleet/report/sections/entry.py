"""The section of one entry: what was asked and reached, its layers, its time, how it was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deploykit.contract.precision import Evidence
from deploykit.contract.recipe import TriedStep
from deploykit.judge import figures
from deploykit.judge.parity import ParityReport
from deploykit.judge.profiling import Percentiles, Profile, rounded
from deploykit_fleet.report import times
from deploykit_fleet.report.entries import Entry
from deploykit_fleet.report.layers import layers_of, time_by_kind
from deploykit_fleet.report.markup import Child, Html, el, sentence, short
from deploykit_fleet.report.pictures.bars import Bar, bars
from deploykit_fleet.report.pictures.frame import figure
from deploykit_fleet.report.pictures.skyline import skyline
from deploykit_fleet.report.pictures.spans import Span, spans
from deploykit_fleet.report.sections.pieces import anchor, badge, notes, table, tiles

_KINDS_SHOWN = 8
_OUTCOMES = {"kept": "passed", "failed": "failed"}
_SIGNS = {"kept": "✓", "failed": "✗", "skipped": "–", "passed over": "·"}


def entry_section(entry: Entry, *, alone: bool) -> Html:
    """Everything that is known of one entry.

    Args:
        alone: it is all that the page is of, and is open.
    """
    name = anchor(entry.name)
    body = list(_body(entry, name))
    if alone:
        return el("section", *body, id=name)
    summary = el("summary", badge(entry.state), el("b", short(entry.name)), el("small", _brief(entry)))
    return el("details", summary, *body, id=name, class_="entry")


def _brief(entry: Entry) -> str:
    latency = times.latency(entry.profile.latency_ms.p50) if entry.profile else ""
    size = figures.size(entry.size_bytes) if entry.size_bytes is not None else ""
    return " · ".join(part for part in (latency, size) if part)


def _body(entry: Entry, name: str) -> Iterator[Html | None]:
    if entry.reason:
        hint = el("code", sentence(entry.hint)) if entry.hint else None
        yield el("p", sentence(entry.reason), el("br") if hint else None, hint, class_=f"why {entry.state}")
    yield tiles(_tiles(entry)) if entry.manifest else None
    rows = layers_of(entry)
    gate = entry.parity.tolerance.min_sqnr_db if entry.parity else None
    pictures = [
        skyline(f"{name}-layers", rows, gate),
        _latency(f"{name}-latency", entry.profile),
        _kinds(f"{name}-time", entry.profile),
        _ladder(f"{name}-ladder", entry),
    ]
    yield el("div", *(picture for picture in pictures if picture), class_="figures") if any(pictures) else None
    yield _gates(entry)
    yield _chain(entry)
    yield notes([sentence(words) for words in _notes(entry)])
    yield _origin(entry)


# -- figures that are read first --------------------------------------------------------------------------------


def _tiles(entry: Entry) -> Iterator[tuple[str, str, str]]:
    profile, manifest = entry.profile, entry.manifest
    if profile is not None:
        yield from _speed(profile)
    before = profile.baseline_size_bytes if profile else None
    beside = f"{figures.size(before)} as {profile.baseline}" if profile and before else ""
    yield "size", figures.size(entry.size_bytes), beside
    if entry.parity is not None:
        yield from _accuracy(entry.parity)
    if manifest is not None:
        achieved = manifest.achieved
        counted = f"multiply-accumulates: {figures.achieved(achieved)}"
        yield f"in {manifest.precision}", figures.share(achieved.placed_fraction), counted
    if entry.board is not None:
        reached = f"{figures.decibel(entry.board.sqnr_db)} against its golden outputs · {entry.board.evidence}"
        yield f"on {entry.board.device}", "verified" if entry.board.verified else "not verified", reached


def _accuracy(parity: ParityReport) -> Iterator[tuple[str, str, str]]:
    least = f"at least {figures.decibel(parity.spread.low_db)} on others" if parity.spread else ""
    yield "SQNR", figures.decibel(parity.sqnr_db), " · ".join(filter(None, (str(parity.evidence), least)))
    metric = parity.metric
    if metric is not None:
        fall = f" ({metric.fall.low:.2g} to {metric.fall.high:.2g})" if metric.fall else ""
        said = f"float {metric.reference:.4g}, drop {metric.drop:.2g}{fall}"
        yield "task metric", f"{metric.artifact:.4g}", said


def _speed(profile: Profile) -> Iterator[tuple[str, str, str]]:
    latency = profile.latency_ms
    if profile.evidence is Evidence.ESTIMATE:
        yield "latency", times.latency(latency.p50), f"estimate from the {profile.host.os}; nothing was run"
    else:
        said = f"p99 {times.latency(latency.p99)} · {profile.evidence}, batch {profile.batch_size}, "
        yield "latency p50", times.latency(latency.p50), f"{said}{profile.threads} threads"
    if profile.worth_it is not None:
        yield "speed-up", figures.times(profile.worth_it), f"over the {profile.baseline}"
    yield "throughput", figures.rate(profile.throughput_per_s), f"at batch {profile.batch_size}"
    if profile.peak_memory_bytes is not None:
        yield "peak memory", figures.size(profile.peak_memory_bytes), ""


# -- pictures ---------------------------------------------------------------------------------------------------


def _latency(name: str, profile: Profile | None) -> Html | None:
    """How the runs spread; an estimate has no runs."""
    if profile is None or profile.evidence is Evidence.ESTIMATE:
        return None
    found = {"this artifact": profile.latency_ms}
    if profile.baseline_latency_ms is not None:
        found[profile.baseline or "baseline"] = profile.baseline_latency_ms
    for threads, own in profile.latency_by_threads_ms.items():
        found[f"{threads} thread{'' if threads == '1' else 's'}"] = own
    if profile.sustained is not None:
        found["first window of a long run"] = profile.sustained.first_ms
        found["its last window"] = profile.sustained.last_ms
    unit, by = times.unit_of(own.p50 for own in found.values())
    rows = [_run_span(each, own, by, "same" if index else "bar") for index, (each, own) in enumerate(found.items())]
    described = "; ".join(f"{row.name}: {row.said}" for row in rows)
    said = f"p50 / p99 · line: quickest to p99 · thick: p50 to p90 · {profile.runs} runs"
    columns = ("minimum", "p50", "p90", "p99")
    data = {each: {of: rounded(getattr(own, of), 4) for of in columns} for each, own in found.items()}
    return figure(name, "Latency of a run", said, spans(rows, unit, described), data)


def _run_span(name: str, own: Percentiles, by: float, kind: str) -> Span:
    low, middle, inner, high = (by * each for each in (own.minimum, own.p50, own.p90, own.p99))
    return Span(name, low, middle, high, inner, kind, times.latencies(own))


def _kinds(name: str, profile: Profile | None) -> Html | None:
    spent = time_by_kind(profile)
    total = sum(spent.values())
    if profile is None or not total:
        return None
    shown = list(spent.items())[:_KINDS_SHOWN]
    rest = total - sum(each for _, each in shown)
    rows = [Bar(kind, each, f"{figures.significant(each)} µs · {figures.share(each / total)}") for kind, each in shown]
    if rest > 0.0:
        rest_shown = f"{figures.significant(rest)} µs · {figures.share(rest / total)}"
        rows.append(Bar(f"{len(spent) - len(shown)} others", rest, rest_shown, "same"))
    how = "estimated" if profile.evidence is Evidence.ESTIMATE else "median"
    described = ", ".join(f"{row.name} {row.shown}" for row in rows[:3])
    data = {short(kind): each for kind, each in shown} | ({"others": rest} if rest > 0.0 else {})
    said = f"{how} microseconds, {figures.significant(total)} in all"
    return figure(name, "Time by kind of operator", said, bars(rows, described), data)


def _ladder(name: str, entry: Entry) -> Html | None:
    recipe = entry.manifest.recipe if entry.manifest else None
    if recipe is None or not recipe.ladder:
        return None
    parity = entry.parity
    goal = parity.tolerance.min_sqnr_db if parity else None
    rows = [
        Bar(f"{_SIGNS.get(step.outcome, '·')} {step.step}", step.sqnr_db, _reached(step), _kind(step))
        for step in recipe.ladder
    ]
    said = "bar: SQNR" + (f" · line: gate {goal:g} dB" if goal else "") + " · ✓ the best until then"
    described = f"{len(rows)} steps were tried: " + ", ".join(f"{row.name} {row.shown}" for row in rows)
    return figure(
        name,
        "How the recipe was found",
        said,
        bars(rows, sentence(described), goal=goal, above=True),
        _tried(recipe.ladder),
    )


def _kind(step: TriedStep) -> str:
    return _OUTCOMES.get(step.outcome, "same")


def _reached(step: TriedStep) -> str:
    metric = f"metric {figures.plain(step.metric)}" if step.metric is not None else ""
    decibels = figures.decibel(step.sqnr_db) if step.sqnr_db is not None else ""
    return " · ".join(filter(None, (decibels, metric))) or step.outcome


def _tried(ladder: Sequence[TriedStep]) -> list[dict[str, object]]:
    return [
        {
            "step": short(step.step),
            "outcome": step.outcome,
            "reason": sentence(step.reason),
            "sqnr_db": step.sqnr_db,
            "metric": step.metric,
            "drop": step.drop,
            "drop_low": step.drop_low,
            "drop_high": step.drop_high,
            "share": step.int8_share,
        }
        for step in ladder
    ]


# -- tables -----------------------------------------------------------------------------------------------------


def _gates(entry: Entry) -> Html | None:
    if not entry.gates:
        return None
    rows: list[tuple[Child, ...]] = [
        (
            badge("passed" if gate.passed else "failed", "met" if gate.passed else "missed"),
            short(gate.name),
            f"{gate.asked:.6g}",
            figures.UNKNOWN if gate.value is None else f"{gate.value:.6g}",
        )
        for gate in entry.gates
    ]
    return table(("gate", "name", "asked", "reached"), rows, "Gates", "n3")


def _chain(entry: Entry) -> Html | None:
    if entry.parity is None or not entry.parity.chain:
        return None
    rows = [(f"{link.reference} → {link.candidate}", *figures.of_link(link)) for link in entry.parity.chain]
    caption = f"Parity over {entry.parity.samples} samples ({sentence(entry.parity.data)})"
    return table(("compared", "evidence", "SQNR", "cosine", "max abs", "top-1"), rows, caption, "n3")


def _notes(entry: Entry) -> Iterator[str]:
    yield from entry.remarks
    if entry.profile is not None:
        yield from (finding.message for finding in entry.profile.findings)
    if entry.manifest is not None:
        yield from entry.manifest.achieved.notes
    if entry.parity is not None:
        yield from entry.parity.notes
    if entry.profile is not None:
        yield from entry.profile.notes


def _origin(entry: Entry) -> Html | None:
    manifest = entry.manifest
    if manifest is None:
        return None
    made = [("deploykit", manifest.deploykit_version), *sorted(manifest.tool_versions.items())]
    rows = [("made with", ", ".join(f"{tool} {version}" for tool, version in made))]
    if entry.profile is not None and entry.profile.evidence is not Evidence.ESTIMATE:
        rows.append(("measured on", f"{entry.profile.host.kind}, {entry.profile.host.cores} cores"))
    if entry.profile is not None and entry.profile.conditions is not None:
        rows += entry.profile.conditions.rows()
    if manifest.calibration is not None:
        data = manifest.calibration
        rows.append(("calibrated on", f"{data.source}, {data.samples} samples, {data.method}"))
    rows.append(("fingerprint", entry.fingerprint))
    pairs = [el("div", el("dt", name), el("dd", sentence(value))) for name, value in rows]
    return el("dl", *pairs, class_="origin")
