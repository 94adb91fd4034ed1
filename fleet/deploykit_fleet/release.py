"""`deploykit.release`: compute what a release file asks for and its store lacks, and say what came of every cell.

plan ─▶ lease ─▶ export, side by side ─▶ profile, alone ─▶ boards, alone ─▶ release.json, junit.xml

PyTorch and Ray are imported by other processes only, so that a run with nothing to do costs the time of its plan.
"""

from __future__ import annotations

import datetime
import importlib.util
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, overload

import msgspec

from deploykit.contract.errors import DeviceError, MissingDependencyError, UsageError
from deploykit.contract.host import this_host
from deploykit.contract.progress import Event, Progress, State
from deploykit_fleet import lease, outcome
from deploykit_fleet.boards import confirmed
from deploykit_fleet.engine import pool
from deploykit_fleet.engine.child import Children
from deploykit_fleet.engine.jobs import EXPORT, PROFILE, CellJob, Job
from deploykit_fleet.outcome import FAILED, SKIPPED, Cell, Failure, Release
from deploykit_fleet.planner import CACHED, MISSING, Plan, PlannedCell, plan
from deploykit_fleet.release_file import ENGINES
from deploykit_fleet.store import Store
from deploykit_fleet.writing import described, write

_log = logging.getLogger("deploykit")
RELEASE, GC = "release", "gc"
_PROCESS_BYTES = 2 << 30
"""What a process that exports may need; fewer are started where memory is short."""


class Tell(Protocol):
    """Says which step runs, and how much of what it counts is done."""

    def __call__(self, step: str, done: int | None = None, total: int | None = None) -> None:
        """A step begins, or advances where it is the one that runs."""


@overload
def release(
    file: str | Path = ...,
    *,
    cluster: str | None = ...,
    jobs: int | None = ...,
    dry_run: Literal[False] = ...,
    against: str | Path | None = ...,
    engine: str | None = ...,
    progress: Progress = ...,
) -> Release: ...


@overload
def release(
    file: str | Path = ...,
    *,
    cluster: str | None = ...,
    jobs: int | None = ...,
    dry_run: Literal[True],
    against: str | Path | None = ...,
    engine: str | None = ...,
    progress: Progress = ...,
) -> Plan: ...


def release(
    file: str | Path = "release.toml",
    *,
    cluster: str | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    against: str | Path | None = None,
    engine: str | None = None,
    progress: Progress = True,
) -> Release | Plan:
    """Compute what a release file asks for and its store lacks.

    Finished cells are never computed again. A run that was killed goes on where it was when it is started again.

    Args:
        file: the release file.
        cluster: address of a running Ray cluster (`host:port`, or `auto`), whose nodes see the same folders; None for
            this machine.
        jobs: most processes at once; None for what cores and memory allow.
        dry_run: write and compute nothing, and return the plan.
        against: an older release (its folder or `release.json`) that must be readable; `deploykit_fleet.against` and
            `deploykit report` compare.
        engine: `ray`, `pool` or `sequential`; None for what the file says, by default Ray where it is installed.
        progress: True shows what is going on, on a terminal; False nothing; a function is told each `Event` of a step.
    Returns:
        What came of every cell; a cell that failed is no exception: see `Release.exit_code`. With `dry_run` the plan.
    Raises:
        UsageError: the file is wrong (the message says the line), or the arguments are.
        MissingDependencyError: Ray was asked for, and is not installed.
        ArtifactError: the store cannot be written, or `against` cannot be read.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs is {jobs}", hint="1 or more, or leave it out")
    if against is not None:
        outcome.read(against)
    found = plan(file)
    if dry_run:
        return found
    return _Run(found, _engine(found, engine, cluster), cluster, jobs, progress).run()


def _engine(found: Plan, asked: str | None, cluster: str | None) -> str:
    """The engine as asked, else as the file says; `auto` is decided when it is known how much there is to do."""
    name = asked or ("ray" if cluster is not None else found.file.settings.engine)
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of {', '.join(ENGINES)}")
    if cluster is not None and name not in ("auto", "ray"):
        raise UsageError(f"cluster= needs the engine ray, not {name}", hint="leave engine= out")
    name = "ray" if cluster is not None else name
    if name == "ray" and not has_ray():
        raise MissingDependencyError("ray", extra="release", purpose="compute a release on a cluster")
    return name


def has_ray() -> bool:
    """Whether Ray is installed; nothing is imported to find out."""
    spec = importlib.util.find_spec("ray")
    return spec is not None and spec.origin is not None


@dataclass
class _Run:
    """One run of a release, inside its lease."""

    plan: Plan
    engine: str
    cluster: str | None
    at_once: int | None
    progress: Progress
    own: Path = field(init=False)
    found: dict[str, Cell] = field(init=False, default_factory=dict)
    used: str = field(init=False, default="none")

    @property
    def store(self) -> Store:
        return self.plan.store

    def run(self) -> Release:
        """Everything, in its order."""
        began, started = time.perf_counter(), datetime.datetime.now(datetime.UTC)
        self.store.prepare()
        lease.sweep(self.store.work)
        keys = [cell.key for cell in self.plan.cells]
        with lease.held(self.store.work, RELEASE, keys) as self.own:
            lease.wait_while(self.store.work, GC)
            missing = self._take_cached()
            with _Display(self.progress) as tell:
                self._export(missing, tell)
                self._profile(tell)
                cells = tuple(self._boards(tell))
            made = described(self.plan.file.name, cells, self.used, started, time.perf_counter() - began)
            write(made, self.store, self.own, started)
            return made

    def _take_cached(self) -> list[PlannedCell]:
        """What is finished, looked up again under the lease; returns what is missing."""
        missing = []
        for cell in self.plan.cells:
            stored = self.store.finished(cell.key) if cell.state in (CACHED, MISSING) else None
            if stored is not None:
                spec = cell.spec
                self.found[cell.key] = msgspec.structs.replace(
                    stored.cell, model=spec.model, target=spec.target, precision=spec.precision, cached=True
                )
            elif cell.failure is not None:
                self.found[cell.key] = _impossible(cell)
            else:
                missing.append(cell)
        return missing

    def _export(self, missing: Sequence[PlannedCell], tell: Tell) -> None:
        """Export what is missing: side by side, and then alone what is measured beside its float build."""
        if not missing:
            return
        alone = [cell for cell in missing if cell.spec.block.gates.min_speedup is not None]
        together = self._jobs(EXPORT, [cell for cell in missing if cell not in alone])
        self.used = self._chosen(together)
        done = 0
        stages = ((self.used, together), ("sequential", self._jobs(EXPORT, alone)))
        for engine, jobs in stages:
            tell("exporting cells", done, len(missing))
            for job, cells in self._done(engine, jobs):
                self.found |= {cell.key: cell for cell in cells}
                done += len(job.cells)
                tell("exporting cells", done, len(missing))

    def _chosen(self, jobs: Sequence[Job]) -> str:
        """The engine for what there is to do: one model has one process, and needs none of them."""
        if self.engine != "auto":
            return self.engine
        if len(jobs) <= 1 or self.at_once == 1:
            return "sequential"
        return "ray" if has_ray() else "pool"

    def _done(self, engine: str, jobs: Sequence[Job]) -> Iterator[pool.Done]:
        retries, children = self.plan.file.settings.retries, Children(self.own.name)
        at_once = 1 if engine == "sequential" else self.at_once or processes(self.plan.file.settings.threads)
        if engine == "ray" and jobs:
            from deploykit_fleet.engine.on_ray import run

            left = list(jobs)
            try:
                for done in run(jobs, self.cluster, self.own, at_once=at_once, retries=retries):
                    left = [job for job in left if job is not done[0]]
                    yield done
                return
            except DeviceError as error:
                if self.engine != "auto":  # Ray was asked for by name
                    raise
                _log.warning("%s; going on in a pool of processes", error.message)
                jobs, self.used = left, "pool"
        if jobs:
            yield from pool.run(jobs, children, at_once=at_once, retries=retries)

    def _jobs(self, kind: str, cells: Sequence[PlannedCell]) -> list[Job]:
        """A job for each model: that is what captures once."""
        settings = self.plan.file.settings
        by_model: dict[str, list[PlannedCell]] = {}
        for cell in cells:
            by_model.setdefault(cell.spec.model, []).append(cell)
        stage = uuid.uuid4().hex[:8]
        return [
            Job(
                kind=kind,
                name=name,
                model=self.plan.file.models[name],
                folder=str(self.plan.file.folder),
                folders=tuple(map(str, self.plan.folders)),
                store=str(self.store.root),
                work=str(self.own / f"{stage}-{name}"),
                capture=self.plan.models[name].capture,
                contents=self.plan.models[name].contents,
                isa=this_host().isa,
                threads=settings.threads,
                cells=tuple(self._cell_job(cell) for cell in own),
            )
            for name, own in by_model.items()
        ]

    def _cell_job(self, cell: PlannedCell) -> CellJob:
        spec = cell.spec
        return CellJob(
            key=cell.key,
            target=spec.target,
            precision=spec.precision,
            block=spec.block,
            needs_data=cell.needs_data,
            baseline=self._baseline(cell),
        )

    def _baseline(self, cell: PlannedCell) -> str:
        """The float build of the same model on the same target, where the release has one."""
        spec = cell.spec
        for other in self.plan.cells:
            same = (other.spec.model, other.spec.target, other.spec.precision) == (spec.model, spec.target, "fp32")
            if same and spec.precision != "fp32" and other.key in self.found:
                return self.found[other.key].fingerprint
        return ""

    def _profile(self, tell: Tell) -> None:
        """Measure what was not measured yet, one after another."""
        if not self.plan.file.settings.profile:
            return
        pending = [
            cell
            for cell in self.plan.cells
            if (stored := self.store.finished(cell.key)) is not None and stored.profile == "pending"
        ]
        if pending:
            done = 0
            tell("profiling artifacts", done, len(pending))
            for job, _ in self._done("sequential", self._jobs(PROFILE, pending)):
                done += len(job.cells)
                tell("profiling artifacts", done, len(pending))

    def _boards(self, tell: Tell) -> Iterator[Cell]:
        """Every cell of the release in its order, with what its board said."""
        for cell in self.plan.cells:
            found, block = self.found.get(cell.key) or _lost(cell), cell.spec.block
            if found.status == FAILED and found.artifact is None and found.failure is not None:
                found = _skipped_if_allowed(cell, found, found.failure)
            if block.device:
                tell(f"{block.device}: {cell.spec.name}")
            yield confirmed(found, block, self.store, profile=self.plan.file.settings.profile)


def processes(threads: int) -> int:
    """How many processes of so many threads this machine takes."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, int(psutil.virtual_memory().available // _PROCESS_BYTES)))


def _impossible(cell: PlannedCell) -> Cell:
    assert cell.failure is not None
    skipped = cell.state == SKIPPED
    return _of(cell, SKIPPED if skipped else FAILED, cell.failure)


def _skipped_if_allowed(cell: PlannedCell, found: Cell, failure: Failure) -> Cell:
    kinds = {"UnsupportedPrecisionError": "unsupported", "MissingDependencyError": "missing"}
    allowed = kinds.get(failure.kind) in cell.spec.block.allow_skip
    return _of(cell, SKIPPED, failure) if allowed else found


def _of(cell: PlannedCell, status: outcome.Status, failure: Failure) -> Cell:
    spec = cell.spec
    return Cell(
        model=spec.model,
        target=spec.target,
        precision=spec.precision,
        key=cell.key,
        status=status,
        failure=failure if status == FAILED else None,
        reason=failure.message if status == SKIPPED else "",
    )


def _lost(cell: PlannedCell) -> Cell:
    """A cell without a result: its job ended without one, which no job does."""
    failure = Failure(kind="Crashed", message="its process left no result", hint="run the release again", exit_code=4)
    return _of(cell, FAILED, failure)


class _Display:
    """What is going on: one line on a terminal, events to a listener, and lines of the logger `deploykit` anywhere."""

    def __init__(self, progress: Progress) -> None:
        import sys

        self._status, self._step, self._began = None, "", 0.0
        self._listener = progress if callable(progress) else None
        if progress is True and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("planning")

    def __enter__(self) -> Tell:
        if self._status is not None:
            self._status.start()
        return self._tell

    def _tell(self, step: str, done: int | None = None, total: int | None = None) -> None:
        """A step begins, or advances where it is the one that runs."""
        if step != self._step:
            self._end("ends")
            self._step, self._began = step, time.perf_counter()
            self._say("begins")
        self._say("advances", done, total)
        if self._status is not None:
            counted = "" if done is None else f": {done} of {total}"
            self._status.update(step + counted)

    def _say(self, state: State, done: int | None = None, total: int | None = None) -> None:
        event = Event(self._step, state, time.perf_counter() - self._began, done, total)
        _log.log(logging.DEBUG if state == "advances" else logging.INFO, "%s", event)
        if self._listener is not None:
            self._listener(event)

    def _end(self, state: State) -> None:
        if self._step:
            self._say(state)
            self._step = ""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
        self._end("ends" if kind is None else "fails")
