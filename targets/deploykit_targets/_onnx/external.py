"""Which other files an ONNX file wants read: external data must be listed by the artifact, and so be hashed.

Reads the protobuf without the onnx package, which a board does not have, and without loading weights.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deploykit.contract.errors import ArtifactError

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

_MODEL = {7: "graph", 20: "training", 25: "function"}
# Which fields of which message hold which message, from onnx.proto: only those on the way to a tensor.
_FIELDS = {
    "model": _MODEL,
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_DEEPEST = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_external_data(artifact: StoredArtifact) -> None:
    """Refuse an artifact whose ONNX file names files that its manifest does not list.

    Raises:
        ArtifactError: names the file, or the ONNX file is none.
    """
    listed = {entry.path for entry in artifact.manifest.files}
    beside = PurePosixPath(artifact.manifest.entry).parent
    for location in external_files(artifact.entry):
        if str(beside / location) not in listed:
            raise ArtifactError(
                f"{artifact.manifest.entry} reads external data from {location!r}, which the manifest does not list",
                hint="export the model again",
            )


def external_files(path: Path) -> list[str]:
    """Locations of external data, as the file has them.

    Raises:
        ArtifactError: the file is no protobuf.
    """
    if not path.stat().st_size:
        raise ArtifactError(f"{path.name} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            found = list(dict.fromkeys(_locations(data, 0, len(data), "model", 0)))
        except (IndexError, ValueError) as error:
            raise ArtifactError(f"{path.name} is not an ONNX file: {error}", hint="export the model again") from error
    return found


def _locations(data: mmap.mmap, at: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("graphs inside graphs inside graphs")
    if message == "entry":
        pair = {field: data[start:stop] for field, start, stop in _fields(data, at, end)}
        if pair.get(1) == b"location":
            yield pair.get(2, b"").decode()
        return
    for field, start, stop in _fields(data, at, end):
        inner = _FIELDS[message].get(field)
        if inner is not None:
            yield from _locations(data, start, stop, inner, depth + 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of every field that holds bytes."""
    while at < end:
        key, at = _varint(data, at)
        kind, size = key & 7, 0
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > end:
            raise ValueError("a field that ends behind its message")
        if kind == _BYTES:
            yield key >> 3, at, at + size
        at += size


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")
