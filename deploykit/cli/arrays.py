"""Arrays in files, as `run` and `verify` read and write them: .npz, .safetensors, and .npy for one array.

Names and types are treated as those of calibration data are: the only array serves the only input, floats may change
their width, integers only where every value stays what it is. Nothing is unpickled.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli.output import note
from deploykit.contract.errors import UsageError
from deploykit.contract.naming import UNNAMED, matched
from deploykit.contract.reading import read_bytes, read_tensors

if TYPE_CHECKING:
    import numpy as np

    from deploykit.contract.tensors import TensorSpec

    Arrays = dict[str, np.ndarray]

OUTPUT_SUFFIXES = (".npz", ".safetensors")
_INPUT_SUFFIXES = (*OUTPUT_SUFFIXES, ".npy")
_LARGEST_BYTES = 1 << 30


def check_suffix(path: str, suffixes: tuple[str, ...] = OUTPUT_SUFFIXES) -> None:
    """Refuse a file of another kind, before anything is computed.

    Raises:
        UsageError: the name ends otherwise, or is a folder's.
    """
    if not path.endswith(suffixes) or Path(path).is_dir():
        raise UsageError(f"{path} must be a file that ends in {' or '.join(suffixes)}")


def read_arrays(path: str) -> Arrays:
    """All arrays of a file by name; that of a .npy file is called `arr_0`.

    Raises:
        UsageError: there is no such file, it is damaged or too large.
    """
    check_suffix(path, _INPUT_SUFFIXES)
    if "\0" in path or not Path(path).is_file():
        raise UsageError(f"there is no file {path!r}")
    try:
        if path.endswith(".safetensors"):
            return read_tensors(Path(path), limit=_LARGEST_BYTES, links=True, error=UsageError)
        return _read_npz(read_bytes(Path(path), limit=_LARGEST_BYTES, links=True, error=UsageError), path)
    except UsageError:
        raise
    except Exception as error:  # zip, npy and safetensors raise a dozen kinds
        raise UsageError(
            f"{path} cannot be read: {error}", hint="write it with numpy.savez(path, name=array)"
        ) from error


def _read_npz(data: bytes, path: str) -> Arrays:
    import numpy as np

    if path.endswith(".npy"):
        return {UNNAMED: np.load(io.BytesIO(data), allow_pickle=False)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # a single array that was renamed is no archive
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _LARGEST_BYTES:
        raise UsageError(f"{path} holds {unpacked} bytes when unpacked; more than {_LARGEST_BYTES} are not read")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def fitting(specs: Sequence[TensorSpec], arrays: Arrays, source: str, *, verb: str = "take") -> Arrays:
    """The arrays that are asked for, in their types; what is taken for something else is noted.

    Args:
        verb: what the model does with them: it takes inputs, and gives outputs.

    Raises:
        UsageError: one is missing.
    """
    names = [spec.name for spec in specs]
    found = matched(source, arrays, names, error=UsageError)
    unused = sorted(arrays.keys() - set(found.values()))
    if unused:
        note(f"{source} also has {', '.join(unused)}, which the model does not {verb}")
    if len(names) == 1 and found[names[0]] not in (names[0], UNNAMED):
        note(f"{source}: its only array, {found[names[0]]!r}, is taken for {names[0]!r}")
    return {spec.name: _cast(spec, arrays[found[spec.name]], source) for spec in specs}


def _cast(spec: TensorSpec, array: np.ndarray, source: str) -> np.ndarray:
    """An array in its input's type where that changes no value but by rounding; the session refuses the others."""
    import numpy as np

    wanted = np.dtype(spec.dtype) if spec.has_known_dtype else array.dtype
    if array.dtype == wanted or not _may_become(array, wanted):
        return array
    note(f"{source}: {spec.name!r} is converted from {array.dtype} to {wanted}")
    return array.astype(wanted)


def _may_become(array: np.ndarray, wanted: np.dtype) -> bool:
    import numpy as np

    if array.dtype.kind == "f" or wanted.kind == "f":
        return array.dtype.kind == wanted.kind
    if array.dtype.kind not in "iub" or wanted.kind not in "iub" or not array.size:
        return False
    low, high = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    return int(low) <= int(array.min()) and int(array.max()) <= int(high)


def batches(inputs: Sequence[TensorSpec], arrays: Arrays) -> list[Arrays]:
    """The arrays as they are, or cut along axis 0 where the model has a fixed batch size that divides their rows."""
    whole = [arrays]
    if all(spec.accepts(arrays[spec.name].shape) for spec in inputs):
        return whole
    if any(not spec.shape or not arrays[spec.name].ndim for spec in inputs):
        return whole
    sizes, rows = {spec.shape[0] for spec in inputs}, {len(arrays[spec.name]) for spec in inputs}
    size, count = sizes.pop(), rows.pop()
    if sizes or rows or not isinstance(size, int) or not count or count % size:
        return whole  # the session says what is wrong
    return [{name: array[at : at + size] for name, array in arrays.items()} for at in range(0, count, size)]


def encode(outputs: Arrays, destination: str) -> bytes:
    """The content of the file that `destination` names, by its suffix."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {name: np.asarray(array, order="C") for name, array in outputs.items()}
    if destination.endswith(".safetensors"):
        return save(arrays)
    # numpy.savez takes names as keyword arguments, so that an output called "file" would break it.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()
