"""What other distributions register: entry points by name, each loaded when it is asked for.

Foreign code stands behind them. Two owners of one name are refused, and what cannot be loaded is reported with its
owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import DeploykitError

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

UPDATE = "update or uninstall that distribution"
"""What to do about a registered object that is broken."""


def entry_points(group: str, kind: str) -> dict[str, EntryPoint]:
    """All entry points of `group` by name.

    Args:
        kind: what they are, for messages, such as `toolchain`.
    Raises:
        DeploykitError: two distributions register the same name; the message names both.
    """
    import importlib.metadata

    found: dict[str, EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise DeploykitError(
                f"{kind} {entry.name!r} is registered twice: by {_owner(other)} and by {_owner(entry)}",
                hint="uninstall one of them",
            )
    return found


def named(entry: EntryPoint, kind: str) -> str:
    """What a message calls it: kind, name and owner."""
    return f"{kind} {entry.name!r} of {_owner(entry)}"


def loaded(entry: EntryPoint, kind: str, make: Callable[[Any], Any] | None = None) -> Any:
    """The object behind an entry point.

    Args:
        make: what is called with it, where that is foreign code too.
    Raises:
        DeploykitError: loading or making it raised something, whatever it was.
    """
    try:
        return make(entry.load()) if make else entry.load()
    except Exception as error:
        message = f"{named(entry, kind)} cannot be loaded: {type(error).__name__}: {error}"
        raise DeploykitError(message, hint=UPDATE) from error


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name if entry.dist else 'an unknown distribution'} ({entry.value})"
