"""What several sections are made of: states, figures with a name, tables that scroll on a phone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from deploykit_fleet.report.markup import Child, Html, el, join, text

SIGNS = {"passed": "✓", "failed": "✗", "skipped": "–"}
"""A state is told by sign and word, and never by colour alone."""


def anchor(name: str) -> str:
    """An id for whatever name: letters and digits of its hash."""
    return "e" + hashlib.sha256(name.encode(errors="replace")).hexdigest()[:10]


def badge(state: str, words: str | None = None) -> Html:
    """A state as sign and word."""
    return el("span", f"{SIGNS.get(state, '·')} {words or state}", class_=f"badge {state}")


def tiles(shown: Iterable[tuple[str, str, str]]) -> Html:
    """Figures that are read first.

    Args:
        shown: name, figure, and what is said beside it.
    """
    cells = [
        el("div", el("dt", name), el("dd", el("b", figure), el("span", said) if said else None))
        for name, figure, said in shown
    ]
    return el("dl", *cells, class_="tiles")


def table(heads: Sequence[str], rows: Iterable[Sequence[Child]], caption: str, kind: str | None = None) -> Html:
    """A table that scrolls by itself where it is wider than the page, also by the keyboard.

    Args:
        kind: CSS classes; `nN` sets the columns from the N-th on as figures.
    """
    head = el("thead", el("tr", *(el("th", name) for name in heads)))
    body = el("tbody", join(el("tr", *(el("td", cell) for cell in row)) for row in rows))
    inner = el("table", el("caption", caption), head, body, class_=kind)
    return el("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def notes(found: Sequence[str]) -> Html | None:
    """Remarks as a list; None where there are none."""
    return el("ul", *(el("li", text(each)) for each in dict.fromkeys(found)), class_="notes") if found else None
