"""What changed since another release: findings first, then everything that was compared, and what could not be."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.judge.profiling import rounded
from deploykit_fleet.report.markup import Html, el, join, sentence, short
from deploykit_fleet.report.pictures.frame import figure
from deploykit_fleet.report.pictures.spans import Span, spans
from deploykit_fleet.report.sections.pieces import anchor, notes, table
from deploykit_fleet.report.significance import LEVEL, MARGIN, Shift
from deploykit_fleet.report.verdicts import BETTER, SAME, WORSE, Change, Comparison

_SIGNS = {
    "worse": ("▲", "worse"),
    "better": ("▼", "better"),
    "same": ("=", "no change shown"),
    "untested": ("?", "not tested"),
    "elsewhere": ("≠", "not comparable"),
    "machine": ("~", "machine"),
}
_KINDS = {WORSE: "failed", BETTER: "passed"}
_ORDER = ("worse", "machine", "better", "untested", "elsewhere", "same")
_DRAWN, _BESIDE = 40, 8  # rows of the picture at most; of those that show no change


def changed(comparison: Comparison) -> Html:
    """The section."""
    worse = len(comparison.findings)
    verdict = "Nothing got worse." if not worse else f"{worse} figure{'' if worse == 1 else 's'} got worse."
    how = (
        f"Latency is tested by rank on the single runs: a change is one of more than {100 * MARGIN:.0f} %, and with"
        f" {100 * (1 - LEVEL):.0f} % probability no finding of this page is chance (Holm)."
    )
    apart = [f"new: {short(name)}" for name in comparison.added] + [f"gone: {short(n)}" for n in comparison.gone]
    return el(
        "section",
        el("h2", f"What changed since {short(comparison.old, 60)}"),
        el("p", el("b", verdict), " ", how),
        _forest(comparison.changes),
        _table(comparison.changes),
        notes(apart),
        id="changes",
    )


def _table(changes: Sequence[Change]) -> Html:
    """Everything but what shows no change, of which the number is told."""
    same = sum(change.verdict == SAME for change in changes)
    shown = [change for change in changes if change.verdict != SAME]
    ranked = sorted(shown, key=lambda change: _ORDER.index(change.verdict))
    told = el("p", f"{same} figure{'' if same == 1 else 's'} that may waver show no change.") if same else None
    if not ranked:
        return told or el("p", "No figure differs, and none could be tested.")
    rows = [
        (
            el("span", " ".join(_SIGNS[change.verdict]), class_=f"badge {_KINDS.get(change.verdict, 'skipped')}"),
            el("a", short(change.entry, 60), href=f"#{anchor(change.entry)}"),
            change.what,
            change.old,
            change.new,
            sentence(change.why),
        )
        for change in ranked
    ]
    heads = ("verdict", "build", "figure", "before", "now", "why")
    return join([table(heads, rows, "Figures that changed, or could not be compared", "wide"), told])


def _rounded(shift: Shift, p_value: float | None) -> dict[str, float | bool | None]:
    found = {name: rounded(getattr(shift, name), 4) for name in ("estimate", "low", "high")}
    return {**found, "p_value": None if p_value is None else rounded(p_value), "paired": shift.paired}


def _forest(changes: Sequence[Change]) -> Html | None:
    """Shifts of latency with their intervals; the largest ones, where there are many."""
    tested = [(change, change.shift) for change in changes if change.shift is not None]
    ranked = sorted(tested, key=lambda pair: (pair[0].verdict == SAME, -abs(pair[1].estimate)))
    moved = sum(change.verdict != SAME for change, _ in ranked)
    drawn = ranked[: min(_DRAWN, moved + _BESIDE)]
    if not drawn:
        return None
    rows = [
        Span(
            change.entry,
            100 * shift.low,
            100 * shift.estimate,
            100 * shift.high,
            kind={WORSE: "failed", BETTER: "passed"}.get(change.verdict, "same"),
            said=f"{100 * shift.estimate:+.1f} %",
        )
        for change, shift in drawn
    ]
    band = (-100 * MARGIN, 100 * MARGIN)
    picture = spans(rows, "change of latency in %", f"{len(rows)} shifts of latency", band=band, positive=False)
    left = f" · {len(tested) - len(drawn)} more lie closer to 0" if len(tested) > len(drawn) else ""
    said = f"line: 95 % interval by the runs · grey: what the same file differs from process to process{left}"
    data = [
        {"entry": short(change.entry), "verdict": change.verdict, **_rounded(shift, change.p_value)}
        for change, shift in tested
    ]
    return figure("shifts", "Latency, new against old", said, picture, data)
