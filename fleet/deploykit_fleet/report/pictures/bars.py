"""Figures with names as horizontal bars: time by kind of operator, steps of a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploykit_fleet.report.markup import Html, el, join, short
from deploykit_fleet.report.pictures.axes import from_zero
from deploykit_fleet.report.pictures.frame import WIDTH, label, svg, width_of

_ROW, _NAME, _CHARACTERS = 22.0, 118.0, 17


@dataclass(frozen=True)
class Bar:
    """One row.

    Attributes:
        name: of the row, cut to what fits.
        value: its length; None for none.
        shown: the figure in words.
        kind: CSS class of its colour.
    """

    name: str
    value: float | None
    shown: str
    kind: str = "bar"


def bars(rows: Sequence[Bar], described: str, *, goal: float | None = None) -> Html:
    """The picture, a row for each bar.

    Args:
        described: in one sentence, for a screen reader.
        goal: drawn as a line through all rows; None for none.
    """
    room = max((width_of(row.shown) for row in rows), default=0.0) + 6.0
    most = max([row.value or 0.0 for row in rows] + [goal or 0.0, 0.0])
    scale = from_zero(most, _NAME, WIDTH - room)
    height = _ROW * len(rows) + 4.0
    parts = [_bar(row, scale.at(row.value or 0.0), 4.0 + _ROW * index) for index, row in enumerate(rows)]
    if goal is not None:
        parts.append(el("path", d=f"M{scale.at(goal):g} 2V{height:g}", class_="gate"))
    return svg(height, described, *parts)


def _bar(row: Bar, end: float, y: float) -> Html:
    rectangle = el("rect", x=_NAME, y=y, width=max(1.0, round(end - _NAME, 1)), height=13, rx=2, class_=row.kind)
    words = [
        label(_NAME - 6, y + 10.5, short(row.name, _CHARACTERS), anchor="end"),
        label((end if row.value is not None else _NAME) + 5, y + 10.5, row.shown, kind="num"),
    ]
    return join([rectangle if row.value is not None else None, *words])
