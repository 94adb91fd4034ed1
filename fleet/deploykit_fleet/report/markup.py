"""Text that is safe in a page: what is no `Html` is somebody else's words, and is escaped wherever it is put.

Elements are made by `el` alone, so that escaping cannot be forgotten. Nothing here writes a `style` or an event
attribute: the page's policy would refuse them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploykit.contract.printable import printable

LONGEST = 120
"""Characters of a name, or 4 times as many of a sentence, that a page shows."""

_VOID = frozenset("br hr meta link".split())
_OPEN = frozenset("td th tr li dt dd p tbody thead".split())  # HTML closes them itself
_LEAVES = frozenset("path rect line circle".split())  # of SVG


class Html(str):
    """Markup: text that is not escaped again."""

    __slots__ = ()


Child = str | Html | None
Value = str | float | bool | None


def el(tag: str, *children: Child, **attributes: Value) -> Html:
    """An element.

    Args:
        children: `Html` as it is, other text escaped, None left out.
        attributes: by name, `_` for `-` and a trailing one left out (`class_`); None and False are left out.
    """
    names = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _LEAVES:
        return Html(f"<{tag}{names} />")  # the space ends an attribute without quotes
    inner = "".join(child if isinstance(child, Html) else text(child) for child in children if child is not None)
    closing = "" if tag in _VOID or tag in _OPEN else f"</{tag}>"
    return Html(f"<{tag}{names}>{inner}{closing}")


def join(parts: Iterable[Child], between: str = "") -> Html:
    """Parts one after the other, escaped where they are no `Html`."""
    shown = (part if isinstance(part, Html) else text(part) for part in parts if part is not None)
    return Html(text(between).join(shown))


def text(words: str) -> Html:
    """Somebody else's words, escaped; what steers (escapes, marks of direction) is shown as its code."""
    whole = printable(words).encode("utf-8", "backslashreplace").decode()
    return Html(html.escape(whole, quote=False))


def short(words: str, longest: int = LONGEST) -> str:
    """A name in at most `longest` characters: its beginning and its end, which tell it from others."""
    words = printable(words)
    if len(words) <= longest:
        return words
    end = longest // 3
    return f"{words[: longest - end - 1]}…{words[-end:]}"


def sentence(words: str) -> str:
    """A reason or note in at most four times as many characters."""
    words = printable(words)
    return words if len(words) <= 4 * LONGEST else f"{words[: 4 * LONGEST - 1]}…"


def data_block(name: str, value: Any) -> Html:
    """JSON beside a picture, which a browser does not run.

    Args:
        name: of the picture; letters, digits and `-`.
        value: plain data; names in it are cut by the caller.
    """
    return el("script", Html(as_json(value)), type="application/json", id=f"{name}-data")


def rows_block(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], words: Mapping[str, Sequence[str]]
) -> Html:
    """JSON that people can read, a row a line, and that the script turns into a table that sorts.

    For what has thousands of rows: as a table and as JSON beside it, they would be twice as many bytes.

    Args:
        words: of a column that holds places in this list, because its sentences repeat.
    """
    lines = ",\n".join(as_json(row) for row in rows)
    inner = Html(f'{{"columns":{as_json(columns)},"rows":[\n{lines}],\n"words":{as_json(words)}}}')
    return el("pre", inner, class_="data", id=f"{name}-data", tabindex=0)


def as_json(value: Any) -> str:
    """Compact JSON in which nothing can end an element, or begin one."""
    encoded = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        encoded = encoded.replace(character, f"\\u{ord(character):04x}")
    return encoded.encode("utf-8", "backslashreplace").decode()


def _attribute(name: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    shown = f"{value:g}" if isinstance(value, float) else text(str(value)).replace('"', "&quot;")
    bare = shown and all(c.isalnum() or c in "-.#" for c in shown)
    return f" {name}={shown}" if bare else f' {name}="{shown}"'
