"""Text for a terminal or a page: `printable`, somebody else's words shown and not done; `aligned`, columns;
`layer_labels`, what layers are called in them.

Names, reasons and notes of an artifact may be anybody's: they must not clear a screen, set a clipboard, or make one
word look like another on a terminal or a page.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol

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


class _Layer(Protocol):
    """What has a name in the graph, and a module that it came from."""

    @property
    def name(self) -> str: ...
    @property
    def module_path(self) -> str: ...


def layer_labels(layers: Collection[_Layer]) -> list[str]:
    """What layers are called in a table: by module, and with their own name where several are of one.

    Attention has two products in a module, and a recurrent layer one for each of its steps.
    """
    counts = Counter(layer.module_path for layer in layers)
    return [_label(layer, alone=counts[layer.module_path] == 1) for layer in layers]


def _label(layer: _Layer, *, alone: bool) -> str:
    if not layer.module_path:
        return layer.name
    return layer.module_path if alone else f"{layer.module_path} ({layer.name})"
