"""Reading what somebody else may have written: bounded before it is read, and typed before it is used.

Manifests, profiles, programs, tables, golden and calibration data all come through here. A file is opened once, without
following a link, and must be a regular file of no more than a limit; so a device, a pipe, `/dev/zero` or a sparse file
of 8 GB ends in a sentence and not in a wait or an exhausted memory. JSON is bounded in its nesting and in its number
of values, because both cost far more memory than bytes, and is decoded into the type that the reader names.

Every refusal is a `DeploykitError` of the class that the caller asks for; nothing else leaves this module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import msgspec

from deploykit.contract.errors import ArtifactError, DeploykitError, reason_of

if TYPE_CHECKING:
    import numpy as np

MAX_JSON_BYTES = 32 << 20
"""A manifest, profile or program: 100 times the largest that an export has written."""
MAX_JSON_VALUES = 500_000
MAX_JSON_DEPTH = 64
MAX_ARRAY_BYTES = 4 << 30
"""Golden data, a calibration table, the arrays of `deploykit run`, one batch of calibration data."""

MAX_NUMBER_CHARACTERS = 40  # whole numbers have no end in JSON; past 300 digits arithmetic with them fails

# A string (also one that has no end), what opens, closes or separates values, or a number that is too long.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},:]|[0-9.eE+-]{41,}+', re.DOTALL)
_QUOTE = ord('"')
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

T = TypeVar("T")
Refusal = type[DeploykitError]


@contextlib.contextmanager
def open_regular(
    path: Path, *, limit: int | None = None, links: bool = False, error: Refusal = ArtifactError
) -> Iterator[BinaryIO]:
    """Open a regular file for reading; what is checked is what is open, whatever happens to the name meanwhile.

    Args:
        limit: most bytes that it may have; None for any number.
        links: whether the name may be a symbolic link, as a user's own file may.
        error: class of the refusal.
    Raises:
        DeploykitError: of the class `error`: missing, a link, folder, pipe or device, too large, not readable.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | (_NO_WAIT & ~(getattr(os, "O_NOFOLLOW", 0) if links else 0))
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as cause:  # ValueError: a name with NUL
        raise error(f"cannot read {path}: {_reason(cause)}", hint="check the path and its permissions") from cause
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a regular file, and is not read", hint="pass a file, no folder, pipe or device")
    with os.fdopen(descriptor, "rb") as file:
        if limit is not None and found.st_size > limit:
            raise error(f"{path} has {found.st_size} bytes; more than {limit} are not read", hint="is it damaged?")
        try:
            yield file
        except OSError as cause:
            raise error(f"cannot read {path}: {_reason(cause)}", hint="check the disk") from cause


def read_bytes(path: Path, *, limit: int, links: bool = False, error: Refusal = ArtifactError) -> bytes:
    """The content of a regular file; see `open_regular`."""
    with open_regular(path, limit=limit, links=links, error=error) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it grew meanwhile
        raise error(f"{path} has more than {limit} bytes, and is not read", hint="is something writing to it?")
    return data


def read_json(path: Path, kind: type[T], *, error: Refusal = ArtifactError, hint: str | None = None) -> T:
    """A JSON file as the type that is named; see `open_regular` and `decode_json`."""
    data = read_bytes(path, limit=MAX_JSON_BYTES, error=error)
    return decode_json(data, kind, what=path.name, error=error, hint=hint, verdict="is damaged")


def decode_json(
    data: bytes | str,
    kind: type[T],
    *,
    what: str,
    error: Refusal = ArtifactError,
    hint: str | None = None,
    verdict: str = "is not valid",
    values: int = MAX_JSON_VALUES,
) -> T:
    """JSON as the type that is named.

    Args:
        kind: a dataclass, or anything that msgspec can check.
        what, verdict: begin the sentence of the refusal.
        values: most that it may have.
    Raises:
        DeploykitError: of the class `error`: not JSON or not UTF-8, a field missing or of the wrong type, more than
            `values` values, nested more than `MAX_JSON_DEPTH` deep.
    """
    try:
        data = data.encode() if isinstance(data, str) else data
        _check_extent(data, values)
        return msgspec.json.decode(data, type=kind)
    except (ValueError, OverflowError, RecursionError, TypeError) as cause:  # msgspec's own errors are ValueErrors
        raise error(f"{what} {verdict}: {cause}", hint=hint) from cause


def convert(value: object, kind: type[T], *, what: str, error: Refusal = ArtifactError, hint: str | None = None) -> T:
    """Plain data (dicts, lists, numbers) as the type that is named; fields that it does not name are ignored.

    Raises:
        DeploykitError: of the class `error`: a field is missing or of the wrong type.
    """
    try:
        return msgspec.convert(value, kind)
    except (ValueError, OverflowError, RecursionError, TypeError) as cause:
        raise error(f"{what} is not valid: {cause}", hint=hint) from cause


def read_tensors(
    path: Path, *, limit: int = MAX_ARRAY_BYTES, links: bool = False, error: Refusal = ArtifactError
) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file; see `open_regular`.

    Raises:
        DeploykitError: of the class `error`: also where it is damaged, or holds a type that NumPy does not have.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = read_bytes(path, limit=limit, links=links, error=error)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as cause:
        raise error(f"{path.name} cannot be read: {cause}", hint="is it a whole safetensors file?") from cause


def _check_extent(data: bytes, most: int) -> None:
    """Refuse what would take far more memory, or a deeper stack, than its bytes let expect."""
    depth = values = 0
    for token in _TOKEN.finditer(data):
        start = data[token.start()]
        if start in b"[{":
            depth, values = depth + 1, values + 1
            if depth > MAX_JSON_DEPTH:
                raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
        elif start in b"]}":
            depth -= 1
        elif start in b",:":
            values += 1
        elif start != _QUOTE:
            raise ValueError(f"it has a number of more than {MAX_NUMBER_CHARACTERS} characters")
        if values > most:
            raise ValueError(f"it has more than {most} values")


def _reason(cause: Exception) -> str:
    if isinstance(cause, OSError) and cause.errno == errno.ELOOP:
        return "it is a symbolic link"
    return reason_of(cause)
