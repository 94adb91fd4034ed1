"""The first sample of a data file, for models that do not tell their inputs: the calibration file knows them.

Only the first row of each array is read. Doubles become floats: NumPy makes doubles where nobody asked for them.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploykit.contract.calibration_data import reading
from deploykit.contract.errors import DeploykitError
from deploykit.contract.naming import UNNAMED
from deploykit.contract.reading import open_regular

_LARGEST_BYTES = 1 << 30


def first_rows(path: Path) -> dict[str, Tensor]:
    """The first row of every array, as a batch of one.

    Args:
        path: `.npz`, `.safetensors` or `.npy`; axis 0 of every array counts samples. Arrays of another kind (Python
            objects, no rows) are left out; a file with another suffix gives none.
    Raises:
        CalibrationError: the file is missing or damaged.
    """
    readers = {".npz": _npz, ".safetensors": _safetensors, ".npy": _npy_file}
    reader = readers.get(path.suffix)
    if reader is None:
        return {}
    with reading(path):
        rows = reader(path)
    return {name: row.float() if row.dtype is torch.float64 else row for name, row in rows.items()}


def _npz(path: Path) -> dict[str, Tensor]:
    with open_regular(path, links=True), zipfile.ZipFile(path) as archive:
        rows = {name.removesuffix(".npy"): _npy(archive, name) for name in archive.namelist()}
    return {name: torch.from_numpy(row) for name, row in rows.items() if row is not None}


def _npy_file(path: Path) -> dict[str, Tensor]:
    with open_regular(path, links=True):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not array.ndim or not len(array) or array.dtype.kind not in "fiub":
        return {}
    return {UNNAMED: torch.from_numpy(np.array(array[:1]))}


def _npy(archive: zipfile.ZipFile, member: str) -> np.ndarray[Any, Any] | None:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if not shape or not shape[0] or dtype.kind not in "fiub":
            return None
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        if min(shape) < 0 or row_bytes * (shape[0] if fortran else 1) > _LARGEST_BYTES:
            raise DeploykitError(f"{member} of shape {list(shape)} takes more than {_LARGEST_BYTES} bytes at once")
        if not fortran:
            content = bytearray(file.read(dtype.itemsize * math.prod(shape[1:])))
            return np.frombuffer(content, dtype=dtype).reshape(1, *shape[1:])
    with archive.open(member) as file:
        return np.array(np.lib.format.read_array(file, allow_pickle=False)[:1], order="C")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with open_regular(path, links=True), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        return {name: part[:1] for name, part in slices.items() if part.get_shape() and part.get_shape()[0]}
