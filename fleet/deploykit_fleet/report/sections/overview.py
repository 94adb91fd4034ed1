"""The head of a page, and the matrix of a release: which cell passed, and with what."""

from __future__ import annotations

from collections import Counter

from deploykit.contract.precision import Evidence
from deploykit.judge import figures
from deploykit.judge.profiling import rounded
from deploykit_fleet.outcome import Status
from deploykit_fleet.report.entries import Book, Entry
from deploykit_fleet.report.markup import Html, data_block, el, join, sentence, short
from deploykit_fleet.report.sections.pieces import anchor, badge
from deploykit_fleet.report.times import latency
from deploykit_fleet.report.verdicts import BETTER, Comparison

_REASON = 80
_STATES: tuple[Status, ...] = ("passed", "failed", "skipped")


def head(book: Book, comparison: Comparison | None) -> Html:
    """Title, verdict and origin."""
    facts = [el("span", f"{name} {sentence(value)}") for name, value in book.facts if value]
    return el(
        "header",
        el("p", "deploykit report", class_="kicker"),
        el("h1", short(book.title)),
        el("p", *_verdict(book, comparison), class_="verdict"),
        el("p", *facts, class_="facts") if facts else None,
    )


def _verdict(book: Book, comparison: Comparison | None) -> list[Html]:
    counts = Counter(entry.state for entry in book.entries)
    if book.is_artifact:
        found = [badge(book.entries[0].state)]
    else:
        found = [badge(state, f"{counts[state]} {state}") for state in _STATES if counts[state]]
    if comparison is not None:
        worse = len(comparison.findings)
        better = sum(change.verdict == BETTER for change in comparison.changes)
        words = f"{worse} worse" if worse else "nothing worse"
        link = el("a", words + (f", {better} better" if better else ""), href="#changes")
        found.append(el("span", link, f" than {short(comparison.old, 60)}", class_="than"))
    return found


def matrix(book: Book) -> Html:
    """A row for each model and precision, a column for each target."""
    targets = list(dict.fromkeys(entry.target or "-" for entry in book.entries))
    rows: dict[tuple[str, str, str], dict[str, list[Entry]]] = {}
    for entry in book.entries:
        row = rows.setdefault((entry.identity, entry.model, entry.precision), {})
        row.setdefault(entry.target or "-", []).append(entry)
    names = ["model", *targets]
    heads = el("tr", *(el("th", short(name, 40), scope="col") for name in names))
    body = [
        el(
            "tr",
            el("th", short(model, 60), el("small", short(precision or "-", 40)), scope="row"),
            *(el("td", *(join(map(_cell, found.get(target, []))) or None,)) for target in targets),
        )
        for (_, model, precision), found in rows.items()
    ]
    caption = "Every cell with its state, median latency, size and SQNR"
    inner = el("table", el("caption", caption), el("thead", heads), el("tbody", *body), class_="matrix")
    scroll = el("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)
    data = data_block("matrix", _columns([_record(entry) for entry in book.entries]))
    return el("section", el("h2", "Matrix"), scroll, data, id="matrix")


def _cell(entry: Entry) -> Html:
    figure = " · ".join(part for part in (_latency(entry), _size(entry), _sqnr(entry)) if part)
    told = _begun(entry.reason) if entry.state != "passed" else figure
    link = el("a", badge(entry.state), href=f"#{anchor(entry.name)}", aria_label=f"{short(entry.name)}: {entry.state}")
    return el("div", link, el("small", told) if told else None)


def _begun(reason: str) -> str:
    """The first words of a reason; all of it stands in the entry's section."""
    words = sentence(reason)
    return words if len(words) <= _REASON else f"{words[:_REASON].rpartition(' ')[0]} …"


def _latency(entry: Entry) -> str:
    if entry.profile is None:
        return ""
    estimate = " est." if entry.profile.evidence is Evidence.ESTIMATE else ""
    return latency(entry.profile.latency_ms.p50) + estimate


def _size(entry: Entry) -> str:
    return "" if entry.size_bytes is None else figures.size(entry.size_bytes)


def _sqnr(entry: Entry) -> str:
    return figures.decibel(entry.parity.sqnr_db) if entry.parity and entry.parity.sqnr_db is not None else ""


def _columns(records: list[dict[str, object]]) -> dict[str, list[object]]:
    """A list for each figure: its name once, and not once a cell."""
    return {name: [record[name] for record in records] for name in records[0]}


def _record(entry: Entry) -> dict[str, object]:
    profile, parity = entry.profile, entry.parity
    return {
        "name": short(entry.name),
        "model": short(entry.model),
        "target": short(entry.target),
        "precision": short(entry.precision),
        "state": entry.state,
        "reason": sentence(entry.reason),
        "latency_ms": rounded(profile.latency_ms.p50, 4) if profile else None,
        "latency_evidence": str(profile.evidence) if profile else None,
        "size_bytes": entry.size_bytes,
        "sqnr_db": rounded(parity.sqnr_db, 4) if parity and parity.sqnr_db is not None else None,
        "parity_evidence": str(parity.evidence) if parity else None,
        "metric": parity.metric.artifact if parity and parity.metric else None,
    }
