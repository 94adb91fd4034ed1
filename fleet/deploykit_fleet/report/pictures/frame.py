"""What all pictures have: a title for those who cannot see, a caption, and their figures as JSON beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deploykit_fleet.report.markup import Child, Html, data_block, el, join
from deploykit_fleet.report.pictures.axes import Scale, tick_label

WIDTH = 360.0
_CHARACTER = 6.2  # units, of the letters in pictures


def figure(name: str, title: str, said: str, picture: Html, data: Any, *further: Html | None) -> Html:
    """A picture with its caption and its JSON.

    Args:
        name: unique in the page; the id of the figure, and with `-data` that of its JSON.
        title, said: the caption, and a sentence on how to read it.
        data: plain data, or the element that has it.
        further: below the picture: a legend, words.
    """
    caption = el("figcaption", el("b", title), el("span", said))
    beside = data if isinstance(data, Html) else data_block(name, data)
    return el("figure", caption, picture, *further, beside, id=name)


def svg(height: float, label: str, *children: Child) -> Html:
    """A picture of `WIDTH` by `height` units.

    Args:
        label: what it shows, in one sentence, for a screen reader.
    """
    return el("svg", *children, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label)


def label(x: float, y: float, words: str, *, kind: str = "", anchor: str = "") -> Html:
    """Words at a place; `anchor` is `middle` or `end`, and a class of the style because that takes fewer bytes."""
    return el("text", words, x=x, y=y, class_=f"{kind} {anchor[:1]}".strip() or None)


def width_of(words: str) -> float:
    """About how many units words take."""
    return len(words) * _CHARACTER


def bottom_axis(scale: Scale, y: float, top: float, title: str, count: int = 5) -> Html:
    """Ticks below a plot, lines of the grid through it, and what is counted."""
    ticks = scale.ticks(count)
    lines = "".join(f"M{scale.at(tick):g} {top:g}V{y:g}" for tick in ticks)
    names = [label(scale.at(tick), y + 13, tick_label(tick), anchor="middle") for tick in ticks]
    middle = (scale.start + scale.end) / 2
    return join([el("path", d=lines, class_="grid"), *names, label(middle, y + 27, title, kind="dim", anchor="middle")])


def side_axis(scale: Scale, x: float, right: float, count: int = 4) -> Html:
    """Ticks left of a plot, and lines of the grid through it."""
    ticks = scale.ticks(count)
    lines = "".join(f"M{x:g} {scale.at(tick):g}H{right:g}" for tick in ticks)
    names = [label(x - 4, scale.at(tick) + 3.5, tick_label(tick), anchor="end") for tick in ticks]
    return join([el("path", d=lines, class_="grid"), *names])


def legend_of(kinds: Iterable[tuple[str, str]]) -> Html | None:
    """Class and name of each colour of a picture; None where there are none."""
    items = [el("li", el("i", class_=kind), el("span", name)) for kind, name in kinds]
    return el("ul", *items, class_="legend") if items else None
