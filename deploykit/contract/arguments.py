"""Arguments that users give: numbers, paths and lists of names, as plain values, or a refusal that says which argument.

NumPy's scalars are numbers (a goal is often computed), truth values are none. A string is no list of names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from os import PathLike, fspath
from pathlib import Path
from typing import overload

from deploykit.contract.errors import UsageError


@overload
def number(name: str, value: None, hint: str, *, least: float = ..., most: float = ...) -> None: ...
@overload
def number(name: str, value: object, hint: str, *, least: float = ..., most: float = ...) -> float: ...


def number(name: str, value: object, hint: str, *, least: float = -math.inf, most: float = math.inf) -> float | None:
    """A finite number as a float.

    Args:
        name: of the argument.
        value: what was given; None stays None.
        hint: what to pass.
        least, most: bounds, which belong to what is allowed.
    Raises:
        UsageError: it is no number, not finite, or out of bounds.
    """
    if value is None:
        return None
    found = _finite(value)
    if found is None or not least <= found <= most:
        raise UsageError(f"{name} is {_shown(value)}", hint=hint)
    return found


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def path(name: str, value: object) -> Path:
    """A path as a `Path`.

    Args:
        name: of the argument.
        value: what was given: a string, or what says its path.
    Raises:
        UsageError: it is none.
    """
    if isinstance(value, str | PathLike):
        found = fspath(value)
        if isinstance(found, str):
            return Path(found)
    raise UsageError(f"{name} is {_shown(value)}", hint=f'pass a path, such as {name}="out/model"')


def names(name: str, value: object, example: str, what: str = "names") -> tuple[str, ...]:
    """A list of strings as a tuple; an iterator is read once.

    Args:
        name: of the argument.
        value: what was given.
        example: what an entry may be.
        what: what the strings are.
    Raises:
        UsageError: it is one string, no list, or has other things than strings.
    """
    if isinstance(value, str):
        raise UsageError(f"{name} must be a list of {what}, not one string", hint=f"{name}=[{value!r}]")
    if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
        raise UsageError(f"{name} must be a list of {what}, not {_shown(value)}", hint=f"{name}=[{example!r}]")
    found = tuple(value)
    for each in found:
        if not isinstance(each, str):
            kind = what.removesuffix("s")
            raise UsageError(f"{name} holds something that is no {kind}: {_shown(each)}", hint=f"{name}=[{example!r}]")
    return found


def _shown(value: object, most: int = 80) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        text = f"a number of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."
