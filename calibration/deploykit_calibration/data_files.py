"""Files of calibration data (.npz, .safetensors, .npy), read in pieces: a file larger than memory can be used."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.contract.calibration_data import reading
from deploykit.contract.errors import CalibrationError, UsageError
from deploykit.contract.naming import UNNAMED, matched
from deploykit.contract.reading import open_regular

_FILE_ROWS = 32
MAX_BATCH_BYTES = 1 << 30
"""Of what is read at once: 32 rows, or all of an array that lies in Fortran order."""

Slicer = Callable[[int], Any]  # the next n rows, fewer or none at the end
Reader = Callable[[Path, list[str]], dict[str, Slicer]]


def open_file(path: Path, names: list[str]) -> Callable[[], Iterator[Any]]:
    """Begin passes over a file's batches, dicts of arrays by input name; nothing is read yet.

    Args:
        names: the inputs' names, which the file's arrays must have; the only array serves the only input.

    Raises:
        UsageError: no suffix that is known here.
        CalibrationError: while a pass runs: the file is missing, damaged, or lacks an input.
    """
    readers: dict[str, Reader] = {".npz": _npz_arrays, ".safetensors": _safetensors_arrays, ".npy": _npy_array}
    if path.suffix not in readers:
        raise UsageError(
            f"{path}: calibration files are {' or '.join(readers)}, not {path.suffix or 'without a suffix'}",
            hint='save arrays named like the inputs with numpy.savez, or pass "synthetic" for random data',
        )
    return lambda: _batches(path, readers[path.suffix], names)


def _batches(path: Path, reader: Reader, names: list[str]) -> Iterator[Any]:
    with reading(path):
        arrays = reader(path, names)
        while True:
            batch = {name: take(_FILE_ROWS) for name, take in arrays.items()}
            if not any(len(x) for x in batch.values()):
                return
            yield batch


def _npz_arrays(path: Path, names: list[str]) -> dict[str, Slicer]:
    """Rows streamed out of the archive's members, so that a file larger than memory can be used."""
    with open_regular(path, links=True):  # no pipe or device, which would never end
        archive = zipfile.ZipFile(path)
    members = {name.removesuffix(".npy"): name for name in archive.namelist()}
    chosen = matched(str(path), members, names, error=CalibrationError)
    return {name: _npy_rows(archive, members[member]) for name, member in chosen.items()}


def _npy_array(path: Path, names: list[str]) -> dict[str, Slicer]:
    """The array of a .npy file, for a model with one input; mapped, so that a file larger than memory can be used."""
    with open_regular(path, links=True):
        chosen = matched(str(path), [UNNAMED], names, error=CalibrationError)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not array.ndim:
        raise CalibrationError(f"{path} is a single number; axis 0 must count samples")
    npy_row_bytes(str(path), array.shape, array.dtype, whole=False)
    return {name: _rows_in_memory(array) for name in chosen}


def _npy_rows(archive: zipfile.ZipFile, member: str) -> Slicer:
    file = archive.open(member)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise CalibrationError(f"{archive.filename}: {member} holds Python objects, which are not read")
    if not shape:
        raise CalibrationError(f"{archive.filename}: {member} is a single number; axis 0 must count samples")
    row_bytes = npy_row_bytes(f"{archive.filename}: {member}", shape, dtype, whole=fortran)
    if fortran:  # rows are scattered over the file
        with archive.open(member) as whole:
            return _rows_in_memory(np.lib.format.read_array(whole, allow_pickle=False))
    left = shape[0]

    def take(rows: int) -> Any:
        nonlocal left
        rows = min(rows, left)
        left -= rows
        content = bytearray(file.read(rows * row_bytes))
        if len(content) != rows * row_bytes:
            raise CalibrationError(f"{archive.filename}: {member} is cut short")
        return np.frombuffer(content, dtype=dtype).reshape(rows, *shape[1:])

    return take


def npy_row_bytes(what: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, whole: bool) -> int:
    """Bytes of one row, checked before memory is asked for: a small archive may say that it holds terabytes.

    Args:
        what: names the array in the refusal.
        whole: whether all rows are read at once.
    Raises:
        CalibrationError: a batch of rows is larger than `MAX_BATCH_BYTES`, or the shape is impossible.
    """
    if any(size < 0 for size in shape):
        raise CalibrationError(f"{what} has the impossible shape {list(shape)}")
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    rows = shape[0] if whole else min(shape[0], _FILE_ROWS)
    if row_bytes * rows > MAX_BATCH_BYTES or (row_bytes == 0 and shape[0] > MAX_BATCH_BYTES):
        raise CalibrationError(
            f"{what} of shape {list(shape)} takes more than {MAX_BATCH_BYTES} bytes at once, and is not read",
            hint="pass batches from a generator" + ("" if not whole else ", or save it in C order"),
        )
    return row_bytes


def _rows_in_memory(array: Any) -> Slicer:
    at = 0

    def take(rows: int) -> Any:
        nonlocal at
        at += rows
        return np.array(array[at - rows : at])  # a mapped file is read here

    return take


def _safetensors_arrays(path: Path, names: list[str]) -> dict[str, Slicer]:
    from safetensors import safe_open

    with open_regular(path, links=True):
        file: Any = safe_open(path, framework="pt")
    chosen = matched(str(path), list(file.keys()), names, error=CalibrationError)
    return {name: _safetensors_rows(file.get_slice(member)) for name, member in chosen.items()}


def _safetensors_rows(stored: Any) -> Slicer:
    at, count = 0, stored.get_shape()[0]

    def take(rows: int) -> Any:
        nonlocal at
        first, at = at, min(at + rows, count)
        return stored[first:at]

    return take
