"""What went wrong in the converter, in terms of the user's model: operator, module path, source line."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from deploykit.contract.errors import ConversionError
from deploykit.places.process import ending, from_outside
from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.flatbuffer import Operator

_NO_LOWERING = re.compile(r"Lowering not found: (?P<op>[\w.]+)")
_EXECUTING = re.compile(r"target=(?:torch\.ops\.)?(?P<op>[\w.]+)")
_ILLEGAL = re.compile(r"error: (?:loc\(.*?\): ?)?(?P<reason>[^\n]*(?:failed to legalize|violate|op)[^\n]*)")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_ERROR_AT = re.compile(r"(?P<file>[^\s\"'():]+\.py):(?P<line>\d+):\d+: error: (?P<said>[^\n]*)")
_NOT_TAKEN = re.compile(r"builtin opcode '(?P<kind>\w+)'|Node number (?P<index>\d+) \((?P<node>\w+)\)")
_KEPT_LOG_CHARACTERS = 2000
_KEEP_OUT = "write that part with other operators, or keep it out of the exported model"


class HasSource(Protocol):
    """What is needed of a captured node's origin; as text it names op, module and line."""

    @property
    def op(self) -> str:
        """Such as `aten.conv2d.default`."""

    @property
    def source(self) -> str | None:
        """Such as `model.py:42 in forward: return self.conv(x)`."""


def translated(message: str, log: str, origins: Mapping[str, HasSource]) -> ConversionError:
    """Turn what the converter raised into an error that points into the model.

    Args:
        message: the message of its exception.
        log: all it printed.
        origins: the origins of the captured graph, by node name.
    """
    missing = _NO_LOWERING.search(message)
    named = missing or _EXECUTING.search(message)
    op = named["op"] if named else None
    known = list(origins.values())
    where = _where(op, known) or _by_line(message, known) or _by_error(f"{message}\n{log}", known)
    if missing:
        said = f"LiteRT has no form of {op}{where}"
        return ConversionError(said, hint=_KEEP_OUT)
    first = message.strip().splitlines()[0] if message.strip() else "no message"
    refused = _ILLEGAL.search(log)
    reason = f"{first}; {refused['reason'].strip()}" if refused and refused["reason"].strip() not in first else first
    hint = "; ".join(filter(None, (_KEEP_OUT, _tail(log))))
    return ConversionError(f"litert-torch refuses the model{where}: {reason}", hint=hint)


def not_taken(message: str, model: Any, origins: Mapping[str, HasSource]) -> ConversionError:
    """The converter has written a file that the runtime refuses.

    Args:
        message: the message of the runtime; it names the kind of an operator, or one by its number.
        model: the file, a `ModelT`.
        origins: the origins of the captured graph, by node name, which the file's tensors carry.
    """
    operators = list(flatbuffer.operators(model))
    named = _NOT_TAKEN.search(message)
    found: Iterable[Operator] = ()
    if named and named["index"] and int(named["index"]) < len(operators):
        found = [op for op in (operators[int(named["index"])],) if op.kind == named["node"]]
    elif named and named["kind"]:
        found = [op for op in operators if op.kind == named["kind"]]
    nodes = (name for op in found for tensor in op.outputs for name in tensor.name.split(";"))
    where = next((f": {origins[name]}" for name in nodes if name in origins), "")
    return ConversionError(
        f"LiteRT does not run what litert-torch makes of the model{where}: {message}", hint=_KEEP_OUT
    )


def crashed(code: int, log: str) -> ConversionError:
    """The converter's process ended without a word."""
    if from_outside(code):
        return ConversionError(f"the process of litert-torch {ending(code)}", hint="free memory, or try again")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return ConversionError(f"litert-torch crashed ({how})", hint=_tail(log))


def _where(op: str | None, origins: Iterable[HasSource]) -> str:
    """The first place of the model that uses an operator, by its full name or by name without overload."""
    if op is None:
        return ""
    found = [origin for origin in origins if origin.op.split(".")[:2] == op.split(".")[:2]]
    found.sort(key=lambda origin: origin.op != op)
    return f": {found[0]}" if found else ""


def _by_line(message: str, origins: Iterable[HasSource]) -> str:
    """The operator that stands in the user's line that the message names: the converter splits operators up."""
    lines = [f"{m['file'].rsplit('/', 1)[-1]}:{m['line']}" for m in _FRAME.finditer(message)]
    for line in reversed(lines):
        found = next((origin for origin in origins if (origin.source or "").startswith(f"{line} ")), None)
        if found is not None:
            return f", a part of {found}"
    return ""


def _plain(op: str) -> str:
    """An operator's name without namespace and overload; that of a Python function has neither."""
    return (*op.split("."), "")[1] or op


def _by_error(text: str, origins: Sequence[HasSource]) -> str:
    """The user's line that the converter's passes name, with the operator where only one of it fits."""
    for error in _ERROR_AT.finditer(text):
        line = f"{error['file'].rsplit('/', 1)[-1]}:{error['line']} "
        here = [origin for origin in origins if (origin.source or "").startswith(line)]
        named = [origin for origin in here if f".{_plain(origin.op)}" in error["said"]] if len(here) > 1 else here
        if len({origin.op for origin in named}) == 1:
            return f", a part of {named[0]}"
        if here:
            return f", in {here[0].source}"
    return ""


def _tail(log: str) -> str | None:
    return f"the end of the converter's log:\n{log[-_KEPT_LOG_CHARACTERS:]}" if log.strip() else None
