"""`deploykit release`: a matrix of models, targets and precisions, computed as far as its store lacks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json, Progress, listener, search_current_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit_fleet.against import Change
    from deploykit_fleet.outcome import Cell, Release
    from deploykit_fleet.planner import Plan


def release(
    file: Annotated[str, typer.Argument(metavar="RELEASE.TOML", help="The release file.")] = "release.toml",
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster; its nodes see the same folders.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most processes at once.  [default: by cores and memory]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    against: Annotated[
        str | None, typer.Option(metavar="OLD", help="An older release, and what changed since: folder or file.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="ray, pool or sequential.  [default: as the file says]")
    ] = None,
    progress: Progress = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Compute what a release file asks for and its store lacks.

    The exit code is that of the first cell that failed. A run that was killed goes on where it was.
    """
    from deploykit_fleet.release import release as run

    search_current_folder()
    if dry_run:
        return _dry(run(file, cluster=cluster, jobs=jobs, dry_run=True, against=against, engine=engine), against)
    found = run(file, cluster=cluster, jobs=jobs, against=against, engine=engine, progress=listener(progress))
    return _answer(found, file, against)


def _dry(found: Plan, against: str | None) -> Answer:
    import msgspec

    from deploykit.cli.tables import grid

    cells: list[dict[str, Any]] = [
        {
            "model": cell.spec.model,
            "target": cell.spec.target,
            "precision": cell.spec.precision,
            "key": cell.key,
            "state": cell.state,
            "device": cell.spec.block.device or None,
            "reason": cell.failure.message if cell.failure else None,
        }
        for cell in found.cells
    ]
    counts = Counter(cell.state for cell in found.cells)
    rows = [[c["model"], c["target"], c["precision"], c["state"], str(c["key"])[:12], c["reason"] or ""] for c in cells]
    heads = ["model", "target", "precision", "state", "key", "reason"]
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    document = {"store": str(found.store.root), "cells": cells, "counts": msgspec.to_builtins(counts)}
    return Answer(document, [grid("Plan", heads, rows), f"{told}; nothing was computed", *_old(against)])


def _old(against: str | None) -> Iterator[str]:
    if against is not None:
        yield f"would be compared with {against}"


def _answer(found: Release, file: str, against: str | None) -> Answer:
    import msgspec

    from deploykit_fleet import outcome, release_file
    from deploykit_fleet.against import changes

    store = release_file.read(file).store
    document: dict[str, Any] = {**msgspec.to_builtins(found), "store": str(store), "exit_code": found.exit_code}
    page: list[RenderableType] = [_table(found.cells), *_told(found, store)]
    if against is not None:
        differ = changes(outcome.read(against), found)
        document["changes"] = msgspec.to_builtins(differ)
        page.append(_changes(differ, against))
    return Answer(document, page, found.exit_code)


def _table(cells: Sequence[Cell]) -> RenderableType:
    from deploykit.cli.tables import grid
    from deploykit.judge import figures

    heads = ["model", "target", "precision", "status", "SQNR", "metric", "drop", "seconds"]
    rows = []
    for cell in cells:
        sqnr = next((gate.value for gate in cell.gates if gate.name == "min_sqnr_db"), None)
        seconds = "cached" if cell.cached else f"{cell.seconds:.1f}"
        metric = cell.metric.value if cell.metric else None
        names = (cell.model, cell.target, cell.precision, cell.status)
        rows.append([*names, figures.decibel(sqnr), figures.plain(metric), _drop(cell), seconds])
    return grid("Release", heads, rows, right=heads[4:])


def _drop(cell: Cell) -> str:
    from deploykit.judge import figures

    metric = cell.metric
    if metric is None or metric.value is None or metric.reference is None:
        return figures.UNKNOWN
    told = f"{metric.reference - metric.value:.4g}"
    return told if metric.interval is None else f"{told} ({metric.interval[0]:.3g} to {metric.interval[1]:.3g})"


def _told(found: Release, store: Path) -> Iterator[str]:
    from deploykit_fleet.outcome import FAILED, SKIPPED

    for cell in found.cells:
        failure = cell.failure or (cell.device.failure if cell.device else None)
        if cell.status == FAILED and failure is not None:
            yield f"failed: {cell.name}: {failure.kind}: {failure.message}"
            if failure.layers:
                yield "  layers: " + ", ".join(
                    layer.name + (f" {layer.sqnr_db:.1f} dB" if layer.sqnr_db is not None else "")
                    for layer in failure.layers
                )
            if failure.hint:
                yield f"  -> {failure.hint}"
        elif cell.status == SKIPPED:
            yield f"skipped: {cell.name}: {cell.reason}"
    counts = Counter(cell.status for cell in found.cells)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    made = sum(not cell.cached and cell.artifact is not None for cell in found.cells)
    yield f"{told}; {made} computed now ({found.engine}); {store / 'release.json'}"


def _changes(differ: Sequence[Change], against: str) -> RenderableType:
    from deploykit.cli.tables import grid

    if not differ:
        return f"nothing changed since {against}"
    rows = [[change.cell, change.what, change.before, change.after] for change in differ]
    return grid(f"Since {against}", ["cell", "what", "before", "after"], rows)
