"""`deploykit run`: arrays from a file through an artifact, or another model file that a target opens, into a file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import Board, Debug, Json, Threads, load_on
from deploykit.contract.errors import UsageError
from deploykit.contract.reading import read_bytes, read_tensors

if TYPE_CHECKING:
    import numpy as np

    from deploykit.contract.session import Session
    from deploykit.contract.tensors import TensorSpec

    Arrays = dict[str, np.ndarray]

_SUFFIXES = (".npz", ".safetensors")
_INPUT_SUFFIXES = (*_SUFFIXES, ".npy")
_LARGEST_BYTES = 1 << 30


def run(
    artifact: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of an artifact, or a model file that a target opens.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--input", "-i", metavar="FILE", help=".npz or .safetensors with one array per input; .npy for one."
        ),
    ],
    destination: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help=".npz or .safetensors for the outputs.")
    ],
    threads: Threads = None,
    board: Board = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Run an artifact, or a model such as an .mlpackage, on arrays from a file.

    More rows than a fixed batch size takes are run batch by batch.
    Native code that the artifact holds (tvm, aotinductor, built engines) is run: open only what you trust.
    """
    from deploykit.artifact.storage import write_file

    _check_suffix(destination)
    arrays = _read(source)
    with _open(artifact, threads, board) as session:
        batches = _batches(session.inputs, _pick(session.inputs, arrays, source))
        outputs = _join([session.run(feeds) for feeds in batches], session)
    write_file(Path(destination), _encode(outputs, destination))
    shapes = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in outputs.items()}
    lines = [f"{name}: {array.dtype}{list(array.shape)}" for name, array in outputs.items()]
    return Answer(
        {"path": artifact, "input": source, "output": destination, "runs": len(batches), "outputs": shapes},
        [*lines, f"written to {destination}"],
    )


def _open(path: str, threads: int | None, board: str | None) -> Session:
    from deploykit.plugin.registry import opener_of

    opener = opener_of(Path(path))
    if opener is None:
        return load_on(path, board).open(threads=threads)
    if board is not None:
        raise UsageError(f"--board takes an exported artifact, not {path}")
    return opener.open_file(Path(path), threads=threads)


def _check_suffix(path: str, suffixes: tuple[str, ...] = _SUFFIXES) -> None:
    if not path.endswith(suffixes) or Path(path).is_dir():
        raise UsageError(f"{path} must be a file that ends in {' or '.join(suffixes)}")


def _read(path: str) -> Arrays:
    _check_suffix(path, _INPUT_SUFFIXES)
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
        return {"arr_0": np.load(io.BytesIO(data), allow_pickle=False)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # a single array that was renamed is no archive
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _LARGEST_BYTES:
        raise UsageError(f"{path} holds {unpacked} bytes when unpacked; more than {_LARGEST_BYTES} are not read")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _pick(inputs: Sequence[TensorSpec], arrays: Arrays, source: str) -> Arrays:
    """The arrays that the model takes; the only array of the only input may have any name."""
    names = [spec.name for spec in inputs]
    if len(names) == 1 and len(arrays) == 1:
        return {names[0]: next(iter(arrays.values()))}
    missing = [str(spec) for spec in inputs if spec.name not in arrays]
    if missing:
        raise UsageError(f"{source} has no array for {', '.join(missing)}; it has {', '.join(arrays) or 'none'}")
    unused = sorted(arrays.keys() - set(names))
    if unused:
        note(f"{source} also has {', '.join(unused)}, which the model does not take")
    return {name: arrays[name] for name in names}


def _batches(inputs: Sequence[TensorSpec], arrays: Arrays) -> list[Arrays]:
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


def _join(results: Sequence[Mapping[str, np.ndarray]], session: Session) -> Arrays:
    import numpy as np

    if len(results) == 1:
        return dict(results[0])
    rows = session.inputs[0].shape[0]
    for spec in session.outputs:
        if not spec.shape or spec.shape[0] != rows:
            raise UsageError(f"output {spec} has no batch axis to join runs along", hint=f"pass {rows} rows")
    return {spec.name: np.concatenate([result[spec.name] for result in results]) for spec in session.outputs}


def _encode(outputs: Arrays, destination: str) -> bytes:
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
