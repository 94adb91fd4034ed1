"""Include and exclude layers by patterns on their module path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Protocol

from deploykit.contract.errors import UsageError


class HasModulePath(Protocol):
    """What is needed of a captured node's origin."""

    @property
    def module_path(self) -> str:
        """Dotted path of the module, "" for the root."""


def matches(pattern: str, name: str, module_path: str) -> bool:
    """Whether a pattern names the module, a module that holds it, or the node itself."""
    return any(fnmatchcase(text, pattern) for text in (name, module_path)) or fnmatchcase(module_path, f"{pattern}.*")


def kept_float(
    origins: Mapping[str, HasModulePath], names: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> dict[str, str]:
    """Which of `names` stay float by the user's wish.

    Args:
        origins: the origins, by node name.
        names: nodes that could be quantized.
        include: shell patterns; where given, only what matches one is quantized. `layer1` also means all in it.
        exclude: shell patterns of what is not.
    Returns:
        The reason by node name.
    Raises:
        UsageError: a pattern matches none of `names`; near misses are named.
    """
    paths = {name: origins[name].module_path if name in origins else "" for name in names}
    for pattern in (*include, *exclude):
        if not any(matches(pattern, name, path) for name, path in paths.items()):
            _refuse(pattern, sorted({path or name for name, path in paths.items()}))
    kept = {}
    for name, path in paths.items():
        excluded = next((pattern for pattern in exclude if matches(pattern, name, path)), None)
        if excluded is not None:
            kept[name] = f"excluded by pattern {excluded!r}"
        elif include and not any(matches(pattern, name, path) for pattern in include):
            kept[name] = "matches no include pattern"
    return kept


def _refuse(pattern: str, known: list[str]) -> None:
    near = get_close_matches(pattern.rstrip("*."), known, n=5, cutoff=0.4) or known[:5]
    raise UsageError(
        f"pattern {pattern!r} matches no layer that can be quantized",
        hint=f"layers with similar names: {', '.join(near)}" if near else "the model has no such layers",
    )
