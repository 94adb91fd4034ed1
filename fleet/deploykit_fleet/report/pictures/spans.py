"""Figures with what they waver: latency of the quickest to the slowest runs, shifts with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploykit_fleet.report.markup import Html, el, join, short
from deploykit_fleet.report.pictures.axes import Scale, spanning
from deploykit_fleet.report.pictures.frame import WIDTH, bottom_axis, svg

_ROW, _TOP, _LEFT, _RIGHT = 30.0, 6.0, 8.0, WIDTH - 8.0
_CHARACTERS = 40


@dataclass(frozen=True)
class Span:
    """One row.

    Attributes:
        name: above it.
        low, middle, high: ends of the line, and its mark.
        inner: end of its thick part, which begins at `middle`; None for none.
        kind: CSS class of its colour.
        said: beside the name.
    """

    name: str
    low: float
    middle: float
    high: float
    inner: float | None = None
    kind: str = "bar"
    said: str = ""


def spans(
    rows: Sequence[Span], title: str, described: str, *, band: tuple[float, float] | None = None, positive: bool = True
) -> Html:
    """The picture.

    Args:
        title: of the axis, with its unit.
        described: in one sentence, for a screen reader.
        band: two figures between which nothing is to be read; drawn behind the rows.
        positive: the figures are times or ratios, and may be shown in logarithms.
    """
    ends = [end for row in rows for end in (row.low, row.high)] + list(band or ())
    scale = spanning(ends, _LEFT, _RIGHT, positive=positive)
    bottom = _TOP + _ROW * len(rows)
    parts: list[Html | None] = [_band(scale, band, bottom), bottom_axis(scale, bottom, _TOP, title)]
    parts += [_span(row, scale, _TOP + _ROW * index) for index, row in enumerate(rows)]
    return svg(bottom + 32.0, described, *parts)


def _band(scale: Scale, band: tuple[float, float] | None, bottom: float) -> Html | None:
    if band is None:
        return None
    left, right = map(scale.at, band)
    middle = scale.at(0.0)
    zero = el("path", d=f"M{middle:g} {_TOP:g}V{bottom:g}", class_="axis")
    return join([el("rect", x=left, y=_TOP, width=right - left, height=bottom - _TOP, class_="band"), zero])


def _span(row: Span, scale: Scale, y: float) -> Html:
    low, middle, high = map(scale.at, (row.low, row.middle, row.high))
    at = y + 20.0
    words = el("text", short(row.name, _CHARACTERS), el("tspan", f"  {row.said}", class_="dim"), x=_LEFT, y=y + 11)
    line = el("path", d=f"M{low:g} {at:g}H{high:g}M{low:g} {at - 3:g}v6M{high:g} {at - 3:g}v6", class_=f"l {row.kind}")
    thick = None
    if row.inner is not None:
        width = max(0.5, round(scale.at(row.inner) - middle, 1))
        thick = el("rect", x=middle, y=at - 4, width=width, height=8, class_=row.kind)
    return join([words, line, thick, el("circle", cx=middle, cy=at, r=4, class_=f"dot {row.kind}")])
