"""Where in a TOML text a value stands, so that a mistake in somebody's file is named by its line.

`tomllib` tells lines of syntax errors only. A key first exists in the shortest prefix of whole lines that parses and
has it; the line behind the longest prefix that lacks it is where its statement begins. That is exact for every form
of TOML, and costs nothing where there is no mistake.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any


def line_of(text: str, steps: Sequence[str | int]) -> int:
    """The line, from 1, of what is reached by `steps` (keys, and indices of lists).

    Returns:
        That of the nearest thing around it where it stands nowhere, as with a key that is missing.
    """
    lines = text.splitlines(keepends=True)
    for length in range(len(steps), 0, -1):
        found = _statement(lines, steps[:length])
        if found is not None:
            return _within(lines, found, steps[length - 1])
    return 1


def _statement(lines: Sequence[str], steps: Sequence[str | int]) -> tuple[int, int] | None:
    """First and last line, from 0 and inclusive, of the statement that brings what is reached by `steps`."""
    if not _has("".join(lines), steps):
        return None
    without, having = 0, len(lines)  # numbers of lines: a prefix that lacks it, and one that has it
    while having - without > 1:
        whole = _nearest_whole(lines, (without + having) // 2, without, having, steps)
        if whole is None:  # one statement reaches from the one to the other
            break
        count, has = whole
        without, having = (without, count) if has else (count, having)
    first = without
    while first < having - 1 and (not lines[first].strip() or lines[first].lstrip().startswith("#")):
        first += 1
    return first, having - 1


def _nearest_whole(
    lines: Sequence[str], middle: int, least: int, most: int, steps: Sequence[str | int]
) -> tuple[int, bool] | None:
    """A number of lines near `middle`, between the two others, at which no statement is cut; and whether it has it."""
    for count in (*range(middle, least, -1), *range(middle + 1, most)):
        found = _has("".join(lines[:count]), steps)
        if found is not None:
            return count, found
    return None


def _within(lines: Sequence[str], span: tuple[int, int], step: str | int) -> int:
    """The line inside a statement of several lines on which a key stands; its first where that cannot be told."""
    first, last = span
    if isinstance(step, str):
        name = re.compile(rf"""(?<![\w"'-])["']?{re.escape(step)}["']?\s*[=.\]]""")
        return next((n for n in range(first, last + 1) if name.search(lines[n])), first) + 1
    return first + 1


def _has(text: str, steps: Sequence[str | int]) -> bool | None:
    """Whether the text has what is reached by `steps`; None where it does not parse."""
    try:
        found: Any = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    for step in steps:
        if isinstance(step, int):
            if not isinstance(found, list) or step >= len(found):
                return False
        elif not isinstance(found, dict) or step not in found:
            return False
        found = found[step]
    return True
