"""The few shapes that pages are made of. Cells fold and are never cut, so that narrow terminals lose nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from deploykit.artifact import manifest as layout
from deploykit.contract.printable import printable

Cell = str | Text
_STATUS_STYLES = {layout.VERIFIED: "green", layout.FAILED: "bold red", layout.NEEDS_DEVICE_BUILD: "yellow"}


def grid(title: str, headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Sequence[str] = ()) -> Table:
    """A table with a head; columns named in `right` hold figures."""
    table = Table(
        title=printable(title) or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False
    )
    for header in headers:
        table.add_column(header, overflow="fold", justify="right" if header in right else "left")
    for row in rows:
        table.add_row(*map(_shown, row))
    return table


def pairs(title: str, rows: Iterable[tuple[str, Cell]]) -> Table:
    """Names and values, one per line."""
    table = Table(
        title=printable(title) or None,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(_shown(name), _shown(value))
    return table


def _shown(cell: Cell) -> Cell:
    return printable(cell) if isinstance(cell, str) else cell


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(printable(status), style=_STATUS_STYLES.get(status, ""))
