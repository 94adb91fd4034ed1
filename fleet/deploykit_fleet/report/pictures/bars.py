"""Figures with names as horizontal bars: time by kind of operator, steps of a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploykit_fleet.report.markup import Html, el, join, short
from deploykit_fleet.report.pictures.axes import Scale, from_zero
from deploykit_fleet.report.pictures.frame import WIDTH, label, svg, width_of

_ROW, _NAME, _CHARACTERS = 22.0, 118.0, 17
_HIGH_ROW, _MARGIN, _LONG = 32.0, 4.0, 52  # of names above their bars


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


def bars(rows: Sequence[Bar], described: str, *, goal: float | None = None, above: bool = False) -> Html:
    """The picture, a row for each bar.

    Args:
        described: in one sentence, for a screen reader.
        goal: drawn as a line through all rows; None for none.
        above: long names, which stand above their bars and not left of them.
    """
    room = max((width_of(row.shown) for row in rows), default=0.0) + 6.0
    most = max([row.value or 0.0 for row in rows] + [goal or 0.0, 0.0])
    scale = from_zero(most, _MARGIN if above else _NAME, WIDTH - room)
    high = _HIGH_ROW if above else _ROW
    height = high * len(rows) + 4.0
    parts = [_bar(row, scale, 4.0 + high * index, above=above) for index, row in enumerate(rows)]
    if goal is not None:
        parts.insert(0, el("path", d=f"M{scale.at(goal):g} 2V{height:g}", class_="gate"))
    return svg(height, described, *parts)


def _bar(row: Bar, scale: Scale, y: float, *, above: bool) -> Html:
    start, end = scale.start, scale.at(row.value or 0.0)
    if above:
        name, y = label(start, y + 9.0, short(row.name, _LONG), kind="halo"), y + 13.0
    else:
        name = label(start - 6.0, y + 10.5, short(row.name, _CHARACTERS), anchor="end")
    width = max(1.0, round(end - start, 1))
    rectangle = el("rect", x=start, y=y, width=width, height=13, rx=2, class_=row.kind)
    shown = label((end if row.value is not None else start) + 5, y + 10.5, row.shown, kind="halo")
    return join([rectangle if row.value is not None else None, name, shown])
