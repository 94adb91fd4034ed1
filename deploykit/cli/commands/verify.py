"""`deploykit verify`: does this artifact still compute, on this machine, what it computed where it was made?

With `--input` and `--expected`, does it also compute what the user expects of arrays of their own?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import AllowNative, ArtifactPath, Board, Debug, Json, Key, load_on
from deploykit.contract.errors import ParityError, UsageError

if TYPE_CHECKING:
    from deploykit.cli.arrays import Arrays
    from deploykit.judge.parity import Metrics, Tolerance
    from deploykit.plugin.artifact import Artifact


def verify(
    artifact: ArtifactPath,
    source: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="Inputs of your own, as `run` takes them; with --expected."),
    ] = None,
    expected: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What the model gives for them: .npz or .safetensors, .npy for one output."),
    ] = None,
    board: Board = None,
    key: Key = None,
    allow_native: AllowNative = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Check an artifact on this machine, or on a board.

    Every hash is checked, and with --key the signature; then the golden inputs are run, and the results compared with
    the golden outputs. With --input and --expected, your own arrays are run, too, and held to the gate of the
    artifact's precision. Native code (tvm, aotinductor, built engines) of an artifact that was not made here runs only
    with --key or --allow-native. `inspect --key` checks the signature and runs nothing.
    """
    from deploykit.artifact.golden import golden_tolerance
    from deploykit.cli.signatures import lineage_of, signature_rows
    from deploykit.cli.tables import pairs
    from deploykit.pipeline.progress import Steps

    if (source is None) != (expected is None):
        raise UsageError("--input and --expected go together", hint="give both, or neither")
    steps = Steps()
    with steps.step("checking hashes"):
        found = load_on(artifact, board, key=key, allow_native=allow_native)
    with steps.step("running golden data"):
        metrics = found.verify()
        samples = len(found.golden().inputs)
    files = len(found.manifest.files)
    tolerance = golden_tolerance(found.manifest.precision, found.manifest.facts.golden_min_sqnr_db)
    document: dict[str, Any] = {
        "path": artifact,
        "verified": True,
        "files": files,
        "samples": samples,
        "metrics": metrics,
        "tolerance": tolerance,
        "fingerprint": found.fingerprint,
        "lineage": None if key is None else lineage_of(found, key),
    }
    rows = [
        *([] if key is None else signature_rows(found, key)),
        ("hashes", f"{files} files are as the manifest says"),
        ("golden data", f"{samples} samples give the same outputs here as where the artifact was made"),
        *_rows(metrics, tolerance),
    ]
    page = [pairs("", rows)]
    if source is not None and expected is not None:
        own, gate = _own_arrays(found, source, expected)
        document["own"] = {"input": source, "expected": expected, "metrics": own, "tolerance": gate}
        page.append(pairs(f"{source} against {expected}", _rows(own, gate)))
    return Answer(document, page)


def _rows(metrics: Metrics, tolerance: Tolerance) -> Sequence[tuple[str, str]]:
    from deploykit.judge import figures

    return (
        ("SQNR", f"{figures.decibel(metrics.sqnr_db)} (at least {figures.decibel(tolerance.min_sqnr_db)} is asked)"),
        ("cosine", figures.cosine(metrics.cosine)),
        ("max abs", figures.plain(metrics.max_abs)),
        ("top-1 agreement", figures.share(metrics.top1_agreement)),
    )


def _own_arrays(found: Artifact, source: str, expected: str) -> tuple[Metrics, Tolerance]:
    """Run the user's inputs, and compare with the user's outputs.

    Raises:
        UsageError: a file is missing or does not fit.
        ParityError: they differ by more than the gate of the precision.
    """
    from deploykit.cli.arrays import batches, fitting, read_arrays
    from deploykit.contract.session import FunctionSession
    from deploykit.judge.parity import compare_sessions, failures_of, tolerance_of

    feeds = batches(found.inputs, fitting(found.inputs, read_arrays(source), source))
    wanted = fitting(found.outputs, read_arrays(expected), expected, verb="give")
    gate = tolerance_of(found.manifest.precision)
    with found.open() as session:
        results = [session.run(piece) for piece in feeds]
    _refuse_others(results, wanted, expected, source)
    size = len(next(iter(feeds[0].values()))) if len(feeds) > 1 else None
    cut = [
        {name: x if size is None or not x.ndim else x[i * size :][:size] for name, x in wanted.items()}
        for i in range(len(feeds))
    ]
    given, got = iter(cut), iter(results)
    reference = FunctionSession(lambda _: next(given), found.inputs, found.outputs)
    candidate = FunctionSession(lambda _: next(got), found.inputs, found.outputs)
    link = compare_sessions(reference, candidate, feeds)
    misses = failures_of(link, gate)
    if misses:
        raise ParityError(
            f"{found.path.name} gives other outputs for {source} than {expected} has: {'; '.join(misses)}",
            hint="were they made by the model that was exported, in eval mode, with the same preprocessing?",
        )
    return link.worst, gate


def _refuse_others(results: Sequence[Arrays], wanted: Arrays, expected: str, source: str) -> None:
    """Refuse outputs of the user that cannot be compared with those of the artifact, whose batches are `results`.

    Raises:
        UsageError: an array has another shape, or integers where the artifact gives floats (or the other way round).
    """
    for name, array in wanted.items():
        parts = [result[name] for result in results]
        shape = parts[0].shape if len(parts) == 1 or not parts[0].ndim else (sum(map(len, parts)), *parts[0].shape[1:])
        kind = parts[0].dtype
        if array.shape == shape and (array.dtype.kind == "f") == (kind.kind == "f") and array.dtype.kind in "fiub":
            continue
        raise UsageError(
            f"{expected}: {name!r} is {array.dtype}{list(array.shape)}; for {source} the artifact gives"
            f" {kind}{list(shape)}",
            hint=f"--expected takes the model's outputs for the inputs in {source}, row by row;"
            " `deploykit run` with -o writes a file of that form",
        )
