"""Fronts: what is quick, small and accurate at once, one picture for each set of builds whose figures compare."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.judge import figures
from deploykit_fleet.report.fronts import Front
from deploykit_fleet.report.markup import Html, el, short
from deploykit_fleet.report.pictures.scatter import scatter
from deploykit_fleet.report.sections.pieces import table
from deploykit_fleet.report.times import latency

_DRAWN = 24


def fronts_section(fronts: Sequence[Front]) -> Html | None:
    """The section; None where no two builds compare."""
    if not fronts:
        return None
    cards = [
        el("div", scatter(f"front-{index}", front), el("details", el("summary", "as a table"), _table(front)))
        for index, front in enumerate(fronts[:_DRAWN])
    ]
    said = "Only builds whose figures compare share a picture: one model, one evidence, one machine."
    inner = el("div", *cards, class_="figures")
    left = f"{len(fronts) - _DRAWN} smaller sets are left out." if len(fronts) > _DRAWN else None
    return el("section", el("h2", "Latency, accuracy and size"), el("p", said, left), inner, id="fronts")


def _table(front: Front) -> Html:
    """The same figures, for those who cannot see the picture, or want to sort."""
    rows = [
        (
            short(point.label),
            latency(point.latency_ms),
            figures.plain(point.accuracy),
            figures.size(point.size_bytes),
            "on it" if point.best else "beaten",
        )
        for point in front.points
    ]
    heads = ("build", "latency", front.unit, "size", "front")
    return table(heads, rows, f"Builds of {short(front.model)} that compare", "n2")
