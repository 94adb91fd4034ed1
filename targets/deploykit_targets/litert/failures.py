"""What went wrong in the converter, in terms of the user's model: operator, module path, source line."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from typing import Protocol

from deploykit.errors import ConversionError

_NO_LOWERING = re.compile(r"Lowering not found: (?P<op>[\w.]+)")
_EXECUTING = re.compile(r"target=(?:torch\.ops\.)?(?P<op>[\w.]+)")
_ILLEGAL = re.compile(r"error: (?:loc\(.*?\): ?)?(?P<reason>[^\n]*(?:failed to legalize|violate|op)[^\n]*)")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_KEPT_LOG_CHARACTERS = 2000


class HasSource(Protocol):
    """What is needed of a captured node's origin."""

    @property
    def op(self) -> str:
        """Such as `aten.conv2d.default`."""


def translated(message: str, log: str, origins: Mapping[str, HasSource]) -> ConversionError:
    """Turn what the converter raised into an error that points into the model.

    Args:
        message: of its exception.
        log: all it printed.
        origins: of the captured graph, by node name.
    """
    missing = _NO_LOWERING.search(message)
    named = missing or _EXECUTING.search(message)
    op = named["op"] if named else None
    where = _where(op, origins.values()) or _frame(message)
    if missing:
        said = f"LiteRT has no form of {op}{where}"
        hint = "write that part with other operators, or keep it out of the exported model"
        return ConversionError(said, hint=hint)
    first = message.strip().splitlines()[0] if message.strip() else "no message"
    refused = _ILLEGAL.search(log)
    reason = f"{first}; {refused['reason'].strip()}" if refused and refused["reason"].strip() not in first else first
    return ConversionError(f"litert-torch refuses the model{where}: {reason}", hint=_tail(log))


def crashed(code: int, log: str) -> ConversionError:
    """The converter's process ended without a word."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return ConversionError(f"litert-torch crashed ({how})", hint=_tail(log))


def _where(op: str | None, origins: Iterable[HasSource]) -> str:
    """The first place of the model that uses an operator, by its full name or by name without overload."""
    if op is None:
        return ""
    found = [origin for origin in origins if origin.op.split(".")[:2] == op.split(".")[:2]]
    found.sort(key=lambda origin: origin.op != op)
    return f": {found[0]}" if found else ""


def _frame(message: str) -> str:
    frames = [m for m in _FRAME.finditer(message) if "/torch/" not in m["file"] and "litert" not in m["file"]]
    return f" (at {frames[-1]['file'].rsplit('/', 1)[-1]}:{frames[-1]['line']})" if frames else ""


def _tail(log: str) -> str | None:
    return f"the end of the converter's log:\n{log[-_KEPT_LOG_CHARACTERS:]}" if log.strip() else None
