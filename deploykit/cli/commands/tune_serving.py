"""`deploykit tune-serving`: the settings of `serve` that answer most, under limits of memory and latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import AllowNative, ArtifactPath, Debug, Json, Key

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit_serving.settings import Settings
    from deploykit_serving.tuning import Measured, Tuned


def tune_serving(
    artifact: ArtifactPath,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory of the server, such as 512M.")
    ] = None,
    max_p99_ms: Annotated[float | None, typer.Option(help="Largest p99 of the answers in ms.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch to try.")] = 32,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask as fast as they are answered.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="Load on each setting; twice that on the best.")] = 1.0,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Settings.  [default: ARTIFACT.serving.json]")
    ] = None,
    key: Key = None,
    allow_native: AllowNative = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Find the settings of `serve` that answer most requests here.

    Instances, threads and batch are searched: for each a server is started, put under load and asked for its peak
    memory. The front is shown, and the best is written into a file: `deploykit serve ARTIFACT --settings FILE`.
    """
    from deploykit.contract.optional import require
    from deploykit.pipeline.progress import Steps
    from deploykit_serving.batcher import is_batched
    from deploykit_serving.measuring import Trial
    from deploykit_serving.models import Trust
    from deploykit_serving.settings import Settings, TunedSettings
    from deploykit_serving.sizes import parse_size
    from deploykit_serving.tuning import Limits, candidates, search

    require("uvicorn", extra="serve", purpose="serve artifacts")
    limits = Limits(None if max_memory is None else parse_size("--max-memory", max_memory), max_p99_ms)
    trust = Trust(key, allow_native)
    found = trust.load(Path(artifact))
    trial = Trial(found, Settings(), clients, seconds, 2 * seconds, trust)
    among = candidates(batched=is_batched(found.inputs, found.outputs), max_batch=max_batch)
    with Steps().step(f"trying {len(among)} settings"):
        tuned = search(among, trial, limits)
    path = Path(output) if output else found.path.with_name(f"{found.path.name}.serving.json")
    chosen = trial.settings(tuned.best.candidate)
    TunedSettings(chosen, found.fingerprint, _facts(tuned.best)).write(path)
    document = {"path": str(path), **_document(tuned, chosen)}
    return Answer(document, _page(artifact, path, tuned))


def _facts(one: Measured) -> dict[str, Any]:
    return {
        "rows_per_s": round(one.rows_per_s, 1),
        "p99_ms": round(one.p99_ms, 3),
        "peak_memory_bytes": one.peak_bytes,
    }


def _document(tuned: Tuned, chosen: Settings) -> dict[str, Any]:
    import msgspec

    def one(each: Measured) -> dict[str, Any]:
        return {**msgspec.to_builtins(each.candidate), **_facts(each)}

    tried = [
        {
            **msgspec.to_builtins(each.candidate),
            **({} if each.measured is None else _facts(each.measured)),
            "reason": each.reason,
        }
        for each in tuned.tried
    ]
    return {
        "settings": msgspec.to_builtins(chosen),
        "best": one(tuned.best),
        "front": [one(each) for each in tuned.front],
        "tried": tried,
    }


def _page(artifact: str, path: Path, tuned: Tuned) -> list[RenderableType]:
    from deploykit.cli.tables import grid
    from deploykit.judge import figures

    heads = ["instances", "threads", "batch", "rows/s", "p99 ms", "peak memory"]
    rows = [
        [
            *map(str, (one.candidate.instances, one.candidate.threads, one.candidate.max_batch)),
            figures.significant(one.rows_per_s),
            figures.significant(one.p99_ms),
            figures.size(one.peak_bytes),
        ]
        for one in tuned.front
    ]
    left_out = sum(one.measured is None for one in tuned.tried)
    return [
        grid("Front", heads, rows, right=heads),
        f"{len(tuned.tried) - left_out} settings measured, {left_out} left out; the first is written to {path}",
        f"deploykit serve {artifact} --settings {path}",
    ]
