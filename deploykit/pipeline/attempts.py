"""One export among several: what it ends with is a value, so that one that fails takes no other's artifact along.

For `target="device:fastest"`, `target=[...]` and `precision="auto"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from deploykit.contract.errors import ConversionError, DeploykitError, GateError

P = ParamSpec("P")
Made = TypeVar("Made")


class CrashError(ConversionError):
    """An exception that nobody meant to raise, a converter's or a plugin's; it is the cause of this one."""


def attempt(function: Callable[P, Made], *arguments: P.args, **named: P.kwargs) -> Made | DeploykitError:
    """What a call returns, or the error that it ended with, as a value.

    Returns:
        The result, or a `DeploykitError`: one that was raised, or a `CrashError` for any other exception.
    """
    try:
        return function(*arguments, **named)
    except DeploykitError as error:
        return error
    except Exception as error:  # converters and runtimes have exceptions of their own, without a common base
        return _crash(error)


def raise_common(made: Iterable[object]) -> None:
    """Raise the error that every attempt ended with, if it is one: model, data or arguments are what is wrong then.

    A crash that all have in common is raised as what it was: a defect is to be reported with its traceback.
    """
    found = list(made)
    errors = [each for each in found if isinstance(each, DeploykitError) and not isinstance(each, GateError)]
    if len(errors) == len(found) and len({(type(each), each.message) for each in errors}) == 1:
        error = errors[0]
        raise error.__cause__ if isinstance(error, CrashError) and error.__cause__ else error


def _crash(error: Exception) -> CrashError:
    said = str(error).strip()
    kind = type(error).__name__
    crash = CrashError(
        f"unexpected {kind}: {said}" if said else f"unexpected {kind}",
        hint="export for it alone to see where; this is a defect of deploykit, a plugin or the model's code",
    )
    crash.__cause__ = error
    return crash
