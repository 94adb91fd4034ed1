"""Text for a terminal or a page: `printable`, somebody else's words shown and not done; `aligned`, columns.

Names, reasons and notes of an artifact may be anybody's: they must not clear a screen, set a clipboard, or make one
word look like another on a terminal or a page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# C0 without tab and newline, DEL, C1, and what changes the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text in which what steers a terminal (escapes, carriage returns, reversed writing) is shown as its code."""
    return _STEERING.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of columns, for the `str` of a value; all rows are as long."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown)
    return "\n".join(lines)
