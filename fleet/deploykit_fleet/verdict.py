"""From an artifact, or the error that an export ended with, to a cell: gates, metric, layers to blame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploykit.contract.errors import DeploykitError, GateError
from deploykit_fleet.outcome import Failure, Gate, Layer, Metric

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.judge.parity import ParityReport
    from deploykit_fleet.release_file import Gates

_LAYERS = 5


def failure_of(error: Exception | SystemExit, artifact: StoredArtifact | None = None) -> Failure:
    """An error as values, with the layers to blame where an artifact tells them."""
    layers = tuple(_layers(artifact)) if isinstance(error, GateError) and artifact is not None else ()
    if isinstance(error, DeploykitError):
        return Failure(
            kind=type(error).__name__,
            message=error.message,
            hint=error.hint,
            exit_code=error.exit_code,
            layers=layers,
        )
    hint = "the traceback is in the log of the release"
    return Failure(kind=type(error).__name__, message=f"unexpected {type(error).__name__}: {error}", hint=hint)


def gates_of(artifact: StoredArtifact, asked: Gates) -> tuple[Gate, ...]:
    """Every gate of an artifact, those that a precision has by itself included, with what was reached."""
    return tuple(_gates(artifact, asked))


def metric_of(report: ParityReport | None) -> Metric | None:
    """The task metric; None where none was measured."""
    found = report.metric if report is not None else None
    if found is None:
        return None
    fall = found.fall
    interval = None if fall is None else (fall.low, fall.high)
    samples = None if fall is None else fall.samples
    return Metric(value=found.artifact, reference=found.reference, interval=interval, samples=samples)


def _gates(artifact: StoredArtifact, asked: Gates) -> Iterator[Gate]:
    report = artifact.parity
    if report is not None:
        yield from _parity_gates(report)
        if report.metric is not None:
            found = report.metric
            yield Gate(name="max_drop", asked=found.max_drop, value=found.drop, passed=found.passed)
    if asked.min_placement is not None:
        share = artifact.achieved.as_asked_fraction
        yield Gate(name="min_placement", asked=asked.min_placement, value=share, passed=share >= asked.min_placement)
    if asked.min_speedup is not None:
        profile = artifact.profile
        speed = None if profile is None or profile.evidence != "device" else profile.worth_it
        passed = speed is not None and speed >= asked.min_speedup
        yield Gate(name="min_speedup", asked=asked.min_speedup, value=speed, passed=passed)


def _parity_gates(report: ParityReport) -> Iterator[Gate]:
    gate, worst = report.tolerance, report.chain[-1].worst if report.chain else None
    spread = report.spread
    reached = {
        "min_sqnr_db": report.sqnr_db if spread is None or report.sqnr_db is None else spread.low_db,
        "min_cosine": report.cosine,
        "min_top1_agreement": report.top1_agreement,
        "min_part_sqnr_db": worst.part.sqnr_db if worst is not None and worst.part is not None else None,
        "min_equal": worst.equal if worst is not None else None,
    }
    for name, value in reached.items():
        asked = getattr(gate, name)
        if asked is not None and value is not None:  # a figure that the outputs do not have is not gated
            yield Gate(name=name, asked=asked, value=value, passed=value >= asked)


def _layers(artifact: StoredArtifact) -> Iterator[Layer]:
    """Layers of the lowest SQNR where parity was missed, else those that are not in the precision asked for."""
    report = artifact.parity
    if report is not None and not report.passed:
        for layer in report.worst_layers(_LAYERS):
            yield Layer(name=layer.module_path or layer.name, sqnr_db=layer.sqnr_db)
        return
    for found in artifact.achieved.not_as_requested[:_LAYERS]:
        yield Layer(name=found.module_path or found.name)
