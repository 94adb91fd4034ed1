"""The session protocol: frames of a few numbers, a JSON object, and tensors as raw bytes. Version 1.

    request    kind       carries                                  answer
    HELLO      1          -                                        who answers: version, host
    PREFLIGHT  2          `manifest`                               what the machine lacks of what the artifact needs
    OPEN       3          `path`, `threads`, perhaps `manifest`    `threads`
    RUN        4          the inputs                               the outputs
    PROFILE    5          `runs`, `op_runs`, the inputs            `run_ms`, `op_us`, `peak_bytes`; `ops`
    CLOSE      6          -                                        -, and the process ends
    CALL       7          what a program of its own wants          what it gives

An answer is ANSWER (64), or ERROR (65) with `type`, `message` and `hint`. All numbers are little-endian:

    frame      magic "dkpf", version u8, kind u8, tensors u16, runs u32, op_runs u32, text u32; the object, of
               `text` bytes
    tensor     bytes of the name u16, bytes of the dtype u8, axes u8, bytes of the data u64; name, dtype (NumPy's, such
               as "<f4"), the size of each axis u64, the data in C order

This file also runs where deploykit is not installed, beside recipes: Python 3.8 and NumPy are enough. What a stranger
sends is never unpickled, and every size is checked before it is waited for. `tvm/runtime/run.c` has the same in C.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

VERSION = 1
HELLO, PREFLIGHT, OPEN, RUN, PROFILE, CLOSE, CALL = range(1, 8)
ANSWER, ERROR = 64, 65

MAGIC = b"dkpf"
_HEAD = struct.Struct("<4sBBHIII")
_TENSOR = struct.Struct("<HBBQ")
_MOST_TEXT, _MOST_BYTES = 1 << 26, 1 << 36
_KINDS = "biufc"
_DTYPE = re.compile(r"[<>|=]?[A-Za-z][0-9]{1,3}")


class OtherVersionError(ValueError):
    """The other side speaks another version of the protocol; `version` says which."""

    def __init__(self, version: int) -> None:
        super().__init__(f"session protocol {version}, not {VERSION}")
        self.version = version


class Frame(NamedTuple):
    """One request or answer.

    Attributes:
        kind: one of the numbers above.
        facts: a JSON object.
        tensors: arrays by name, in order.
        runs, op_runs: what `PROFILE` asks for: how many runs are timed, and over how many runs operators are.
    """

    kind: int
    facts: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    tensors: dict[str, Any] = {}  # noqa: RUF012
    runs: int = 0
    op_runs: int = 0


def encode(frame: Frame) -> list[Any]:
    """A frame as pieces to be written one after the other; arrays are not copied."""
    text = json.dumps(frame.facts).encode() if frame.facts else b""
    parts: list[Any] = [
        _HEAD.pack(MAGIC, VERSION, frame.kind, len(frame.tensors), frame.runs, frame.op_runs, len(text)),
        text,
    ]
    for name, array in frame.tensors.items():
        plain = np.asarray(array, order="C")
        parts += [tensor_head(name, plain.dtype, plain.shape), plain.reshape(-1).view(np.uint8).data]
    return parts


def tensor_head(name: str, dtype: Any, shape: Sequence[int]) -> bytes:
    """What stands before the data of a tensor."""
    found, text = np.dtype(dtype), name.encode()
    kind, count = found.str.encode(), int(np.prod(shape, dtype=np.int64)) * found.itemsize
    sizes: bytes = b"".join(struct.pack("<Q", size) for size in shape)
    head = _TENSOR.pack(len(text), len(kind), len(shape), count)
    return bytes(head + text + kind + sizes)


def decode(receive: Callable[[int], bytes]) -> Frame:
    """Read a frame.

    Args:
        receive: gives exactly as many bytes as it is asked for.
    Raises:
        ValueError: what came is no frame; `OtherVersionError` where it is one of another version.
    """
    start = receive(len(MAGIC) + 1)
    if start[:4] != MAGIC:
        raise ValueError(f"it begins with {start!r}")
    if start[4] != VERSION:
        raise OtherVersionError(start[4])
    _, _, kind, count, runs, op_runs, size = _HEAD.unpack(start + receive(_HEAD.size - len(start)))
    if size > _MOST_TEXT:
        raise ValueError(f"an object of {size} bytes")
    facts = _object(receive(size)) if size else {}
    if not isinstance(facts, dict):
        raise ValueError(f"{str(facts)[:80]} instead of an object")
    tensors = dict(_tensor(receive) for _ in range(count))
    return Frame(kind, facts, tensors, runs, op_runs)


def _object(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("an object that is nested too deep") from error


def _tensor(receive: Callable[[int], bytes]) -> tuple[str, Any]:
    name_size, dtype_size, axes, size = _TENSOR.unpack(receive(_TENSOR.size))
    name, text = receive(name_size).decode(), receive(dtype_size).decode()
    shape = [struct.unpack("<Q", receive(8))[0] for _ in range(axes)]
    if not _DTYPE.fullmatch(text):  # NumPy would parse more, and not only with errors that are ours
        raise ValueError(f"a tensor {name!r} of {text!r}")
    dtype, count = np.dtype(text), 1
    for axis in shape:
        count *= axis
    if (
        max(shape, default=0) > _MOST_BYTES
        or dtype.kind not in _KINDS
        or dtype.hasobject
        or count * dtype.itemsize != size
        or size > _MOST_BYTES
    ):
        raise ValueError(f"a tensor {name!r} of {text}, {shape} and {size} bytes")
    return name, np.frombuffer(receive(size), dtype).reshape(shape)


# -- answering ----------------------------------------------------------------------------------------------


class Channel:
    """Standard input and output of this process as a channel of frames.

    Whatever else is printed goes to standard error: a vendor's library must not land between two frames.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._replies = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._requests = os.fdopen(os.dup(0), "rb")

    def receive(self) -> Frame | None:
        """The next request; None where the other side has gone."""
        try:
            return decode(self._exactly)
        except EOFError:
            return None

    def send(self, frame: Frame) -> None:
        """Answer."""
        for part in encode(frame):
            self._replies.write(part)
        self._replies.flush()

    def _exactly(self, count: int) -> bytes:
        found: bytes = self._requests.read(count)
        if len(found) < count:
            raise EOFError
        return found


def failure(message: str, hint: str = "", kind: str = "DeviceError") -> Frame:
    """An error as an answer."""
    return Frame(ERROR, {"type": kind, "message": message, "hint": hint})
