"""A job until every cell has a result: tried again where its process died, given up where one cell keeps killing it."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from deploykit.contract.errors import ConversionError, DeploykitError
from deploykit.contract.reading import read_json
from deploykit_fleet.engine.child import LOG
from deploykit_fleet.engine.jobs import CAPTURE, CURRENT, EXPORT, Job
from deploykit_fleet.outcome import FAILED, Cell, Failure

CRASHED = "Crashed"
_ENDED_BY = {signal.SIGKILL: "killed (was there enough memory?)", signal.SIGTERM: "ended"}
_LOG_LINES = 5
_LOG_BYTES = 16 << 10


def attend(job: Job, launch: Callable[[Job], int], retries: int, ending: Callable[[], bool]) -> list[Cell]:
    """Run a job until it is done.

    Args:
        launch: starts a process that does it, and gives its exit code.
        retries: how often a cell may take its process down before it counts as failed.
        ending: whether the release is being ended, and nothing is to be tried again.
    Returns:
        A result for every cell, in their order; fewer only where the release is ending.
    """
    deaths: Counter[str] = Counter()
    while (left := _without_result(job)).cells and not ending():
        code = launch(left)
        if not _without_result(job).cells or ending():
            break
        if job.kind != EXPORT and code == 0:
            break
        culprit = _culprit(left)
        deaths[culprit] += 1
        if deaths[culprit] > retries:
            _give_up(left, culprit, code, deaths[culprit])
    return [found for cell in job.cells if (found := result(job, cell.key)) is not None]


def result(job: Job, key: str) -> Cell | None:
    """What came of a cell; None where nothing has come of it yet."""
    path = job.results / f"{key}.json"
    try:
        return read_json(path, Cell) if path.is_file() else None
    except DeploykitError:
        return None


def _without_result(job: Job) -> Job:
    left = tuple(cell for cell in job.cells if result(job, cell.key) is None)
    return msgspec.structs.replace(job, cells=left)


def _culprit(job: Job) -> str:
    """What was being computed when the process died."""
    with contextlib.suppress(OSError):
        return (Path(job.work) / CURRENT).read_text(encoding="ascii")
    return CAPTURE


def _give_up(job: Job, culprit: str, code: int, deaths: int) -> None:
    from deploykit_fleet.engine.exporting import report

    how = _ended(code)
    for cell in job.cells:
        if culprit not in (cell.key, CAPTURE):
            continue
        what = "captured or calibrated" if culprit == CAPTURE else "exported"
        often = "once" if deaths == 1 else f"{deaths} times"
        message = f"the process died {often} while {job.name} was {what}: {how}{_last_words(job)}"
        failure = Failure(
            kind=CRASHED,
            message=message,
            hint=f"deploykit export {job.model.factory} --target {cell.target} --precision {cell.precision}",
            exit_code=ConversionError.exit_code,
        )
        report(job, _crashed(job, cell.key, cell.target, cell.precision, failure))


def _ended(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:  # of real time, without a name
        return f"ended by signal {-code}"
    return _ENDED_BY.get(number, f"ended by {number.name}")


def _crashed(job: Job, key: str, target: str, precision: str, failure: Failure) -> Cell:
    return Cell(model=job.name, target=target, precision=precision, key=key, status=FAILED, failure=failure)


def _last_words(job: Job) -> str:
    try:
        data = (Path(job.work) / LOG).read_bytes()[-_LOG_BYTES:]
    except OSError:
        return ""
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    return "; it said last: " + " | ".join(lines[-_LOG_LINES:]) if lines else ""
