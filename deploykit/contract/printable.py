"""`printable`: somebody else's words, shown and not done.

Names, reasons and notes of an artifact may be anybody's: they must not clear a screen, set a clipboard, or make one
word look like another on a terminal or a page.
"""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, and what changes the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text in which what steers a terminal (escapes, carriage returns, reversed writing) is shown as its code."""
    return _STEERING.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
