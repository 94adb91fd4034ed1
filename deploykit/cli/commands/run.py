"""`deploykit run`: arrays from a file through an artifact, or another model file that a target opens, into a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.arrays import batches, check_suffix, encode, fitting, read_arrays
from deploykit.cli.output import Answer
from deploykit.cli.parameters import AllowNative, Board, Debug, Json, Key, Threads, load_on
from deploykit.contract.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from deploykit.contract.session import Session

    Arrays = dict[str, np.ndarray]


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
    key: Key = None,
    allow_native: AllowNative = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Run an artifact, or a model such as an .mlpackage, on arrays from a file.

    More rows than a fixed batch size takes are run batch by batch.
    Native code (tvm, aotinductor, built engines) of an artifact that was not made here runs only with --key or
    --allow-native.
    """
    from deploykit.artifact.storage import write_file

    check_suffix(destination)
    arrays = read_arrays(source)
    with _open(artifact, threads, board, key, allow_native=allow_native) as session:
        pieces = batches(session.inputs, fitting(session.inputs, arrays, source))
        outputs = joined([session.run(feeds) for feeds in pieces], session)
    write_file(Path(destination), encode(outputs, destination))
    shapes = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in outputs.items()}
    lines = [f"{name}: {array.dtype}{list(array.shape)}" for name, array in outputs.items()]
    return Answer(
        {"path": artifact, "input": source, "output": destination, "runs": len(pieces), "outputs": shapes},
        [*lines, f"written to {destination}"],
    )


def _open(path: str, threads: int | None, board: str | None, key: str | None, *, allow_native: bool) -> Session:
    from deploykit.plugin.registry import opener_of

    opener = opener_of(Path(path))
    if opener is None:
        return load_on(path, board, key=key, allow_native=allow_native).open(threads=threads)
    if board is not None or key is not None:
        raise UsageError(f"{'--board' if board else '--key'} takes an exported artifact, not {path}")
    return opener.open_file(Path(path), threads=threads)


def joined(results: Sequence[Mapping[str, np.ndarray]], session: Session) -> Arrays:
    """The outputs of several runs as those of one, joined along the batch axis."""
    import numpy as np

    if len(results) == 1:
        return dict(results[0])
    rows = session.inputs[0].shape[0]
    for spec in session.outputs:
        if not spec.shape or spec.shape[0] != rows:
            raise UsageError(f"output {spec} has no batch axis to join runs along", hint=f"pass {rows} rows")
    return {spec.name: np.concatenate([result[spec.name] for result in results]) for spec in session.outputs}
