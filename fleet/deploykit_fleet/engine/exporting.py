"""One model's cells: captured once, calibrated once, exported one after another, each published when it is done.

Runs in a process of its own (`deploykit_fleet.engine.worker`), and is where PyTorch is imported.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.artifact.storage import write_file
from deploykit.contract.errors import DeploykitError, DeviceError, GateError, UsageError
from deploykit.contract.host import this_host
from deploykit_fleet.engine.jobs import CAPTURE, CURRENT, CellJob, Job
from deploykit_fleet.keys import contents
from deploykit_fleet.outcome import FAILED, PASSED, Cell
from deploykit_fleet.store import Capture, Finished, Store, relative
from deploykit_fleet.verdict import failure_of, gates_of, metric_of

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.judge.parity import Tolerance
    from deploykit.plugin.artifact import Artifact
    from deploykit_fleet.release_file import Gates


@dataclass(frozen=True)
class _Ready:
    """A captured model; `calibrated` observes it at the first call, and raises the same error at every one."""

    captured: CapturedModel
    data: Any
    calibrated: Callable[[], Any]
    evaluate: Callable[..., Any] | None


def run(job: Job) -> None:
    """Compute the cells of a job; every one gets a result, whatever happens to it."""
    store = Store(Path(job.store))
    mark(job, CAPTURE)
    try:
        _check_machine(job)
        ready = _ready(job, store)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        for cell in job.cells:
            report(job, _failed(job, cell, error))
        return
    for cell in job.cells:
        mark(job, cell.key)
        began = time.perf_counter()
        try:
            found = _exported(job, cell, ready, store)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            found = _failed(job, cell, error)
        seconds = time.perf_counter() - began
        report(job, found if found.cached else msgspec.structs.replace(found, seconds=round(seconds, 3)))


def mark(job: Job, what: str) -> None:
    """Say what is being computed, so that a death can be told apart from others."""
    (Path(job.work) / CURRENT).write_text(what, encoding="ascii")


def report(job: Job, cell: Cell) -> None:
    """Hand a result to the release."""
    write_file(job.results / f"{cell.key}.json", msgspec.json.encode(cell))


def _check_machine(job: Job) -> None:
    """Refuse a machine that computes otherwise than the one whose instruction sets stand in the keys."""
    host = this_host()
    if host.isa != job.isa:
        differ = ", ".join(sorted(set(host.isa) ^ set(job.isa)))
        raise DeviceError(
            f"this node differs from the one that planned the release in {differ}: its artifacts would be others",
            hint="run the release on nodes of one kind, or from a node of the kind that shall compute",
        )


def _ready(job: Job, store: Store) -> _Ready:
    for folder in reversed(job.folders):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    from deploykit.pipeline.capturing import captured_of
    from deploykit.pipeline.fastest import kept
    from deploykit.pipeline.steps import calibrate

    given = job.model.calibration or None
    captured, data = captured_of(job.model.factory, None, given, dynamic_batch=job.model.dynamic_batch)
    data, evaluate = kept(data), _function(job.model.evaluate)
    _check_unchanged(job, data_only=False)
    _check_capture(job, captured, store)
    runs: list[Any] = []

    def calibrated() -> Any:
        if data is None:
            return None
        if not runs:
            runs.append(calibrate(captured, data, cache_dir=store.calibration, progress=False))
        return runs[0]

    return _Ready(captured, data, calibrated, evaluate)


def _check_unchanged(job: Job, *, data_only: bool) -> None:
    """Keys stand for what was there when the release was planned: what changed since is not made under them."""
    folders = tuple(map(Path, job.folders))
    now = contents(job.name, job.model, Path(job.folder), folders, data_only=data_only)
    changed = [name for name, value in job.contents.items() if now.get(name, value) != value]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        message = f"{changed[0]}{more} of model {job.name!r} changed since the release was planned"
        raise UsageError(message, hint="run the release again, and let it be while it runs")


def _check_capture(job: Job, captured: CapturedModel, store: Store) -> None:
    """The same sources must give the same graph with the same weights, or keys would stand for nothing."""
    before = store.capture(job.capture)
    if before is None:
        store.record_capture(job.capture, Capture(model=job.name, fingerprint=captured.fingerprint))
    elif before.fingerprint != captured.fingerprint:
        raise UsageError(
            f"model {job.name!r} is another one than finished cells were made of, and nothing that it declares changed",
            hint=f"let [model.{job.name}] name what its factory reads (weights = [...], files = [...]) or change its"
            " version; seed what is random",
        )


def _function(name: str) -> Callable[..., Any] | None:
    if not name:
        return None
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for step in attribute.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"evaluate {name!r}: {error}", hint="check the name in the release file") from error
    if not callable(found):
        raise UsageError(f"evaluate {name!r} is no function", hint="fn(session) -> float, or a score for each sample")
    checked: Callable[..., Any] = found
    return checked


def _exported(job: Job, cell: CellJob, ready: _Ready, store: Store) -> Cell:
    """Export one cell, and publish it."""
    there = store.finished(cell.key)
    if there is not None:  # another release was quicker
        return msgspec.structs.replace(there.cell, cached=True)
    from deploykit.pipeline.export import export

    block, output = cell.block, Path(job.work) / cell.key[:16]
    failure = None
    try:
        artifact = export(
            ready.captured,
            cell.target,
            cell.precision,
            calibration=ready.calibrated() if cell.needs_data else ready.data,
            calibration_method=block.calibration_method,
            include=block.include,
            exclude=block.exclude,
            algorithms=block.algorithms,
            options=dict(block.options) or None,
            recipe=block.recipe or None,
            evaluate=ready.evaluate,
            max_drop=block.gates.max_drop,
            tolerance=_tolerance(block.gates, cell.precision),
            min_placement=block.gates.min_placement,
            min_speedup=block.gates.min_speedup,
            profile=block.gates.min_speedup is not None,
            output=output,
            progress=False,
        )
    except GateError as error:
        if error.candidate is None:
            raise
        artifact, failure = error.candidate, error
    return _published(job, cell, artifact, failure, ready.captured, store)


def _published(
    job: Job, cell: CellJob, artifact: Artifact, error: GateError | None, captured: CapturedModel, store: Store
) -> Cell:
    """Move the artifact into the store and record the cell, in this order."""
    found = Cell(
        model=job.name,
        target=cell.target,
        precision=cell.precision,
        key=cell.key,
        status=PASSED if error is None else FAILED,
        artifact=relative(artifact.fingerprint),
        fingerprint=artifact.fingerprint,
        failure=None if error is None else failure_of(error, artifact),
        gates=gates_of(artifact, cell.block.gates),
        metric=metric_of(artifact.parity),
        capture=captured.fingerprint,
    )
    profiled = artifact.profile is not None
    _check_unchanged(job, data_only=True)  # which are read late
    store.keep(artifact.path, artifact.fingerprint)
    store.finish(Finished(cell=found, profile="done" if profiled else "pending"))
    return found


def _tolerance(gates: Gates, precision: str) -> Tolerance | None:
    """The gate of the precision with the figures that were asked for in it; None where none was."""
    given = {name: getattr(gates, name) for name in ("min_sqnr_db", "min_cosine", "min_top1_agreement")}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return None
    from dataclasses import replace

    from deploykit.contract.precision import Precision
    from deploykit.judge.parity import tolerance_of

    return replace(tolerance_of(Precision(precision)), **changes)


def _failed(job: Job, cell: CellJob, error: Exception | SystemExit) -> Cell:
    failure = failure_of(error)
    if isinstance(error, DeploykitError) and not failure.hint:
        failure = msgspec.structs.replace(failure, hint=f"deploykit export {job.model.factory} --target {cell.target}")
    return Cell(
        model=job.name, target=cell.target, precision=cell.precision, key=cell.key, status=FAILED, failure=failure
    )
