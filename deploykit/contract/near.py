"""What somebody may have meant by a name that is not there: the end of "did you mean ...?"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

_NEAR = 0.5  # of `difflib`: below it, names have little in common


def near(typed: str, names: Iterable[str], words: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """The names that a typed one is likely to mean, the likeliest first; at most four, and none where none is near.

    Args:
        names: those that there are.
        words: other words for some of them, such as `rpi`, in lower case; what a word stands for comes first.
    """
    asked = typed.strip().lower().replace("_", "-").replace(" ", "-")
    by_case = {name.lower(): name for name in names}
    if asked in by_case:
        return [by_case[asked]]
    meant = [name for name in (words or {}).get(asked, ()) if name in by_case.values()]
    close = [by_case[name] for name in difflib.get_close_matches(asked, sorted(by_case), n=3, cutoff=_NEAR)]
    return list(dict.fromkeys(meant or close))[:4]


def question(found: Sequence[str], otherwise: str) -> str:
    """`did you mean a, b?`, or what else to do where nothing is near."""
    return f"did you mean {', '.join(found)}?" if found else otherwise
