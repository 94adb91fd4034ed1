"""The evidence on an artifact: samples to judge it on, the parity report with the task metric, the profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract.arguments import number
from deploykit.contract.errors import UsageError
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.session import FunctionSession, Session
from deploykit.judge.parity import FLOAT, NO_FIGURE, TRAINED, ParityReport, TaskMetric, Tolerance
from deploykit.judge.profiling import Profile
from deploykit.judge.scores import CONFIDENCE, HINT, Scores, fall_of, scores_of
from deploykit.judge.slower import explained
from deploykit.pipeline.plan import Plan
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.reference import reference_session
from deploykit.pipeline.staging import baseline_artifact, make_golden, with_verdict
from deploykit.pipeline.watch import Tally, Watch
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.target import Target, Validation

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.foreseen import Foreseen
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared

# Enough samples for a verdict within a few seconds of PyTorch on two cores: fewer for heavy models.
_PARITY_MACS = 40_000_000_000
_PARITY_SAMPLES = (8, 64)
_OTHERS = 16


@dataclass(frozen=True)
class Samples:
    """Feeds for parity and golden data, and what they are; `others` are compared, too, and decide nothing."""

    feeds: Sequence[dict[str, np.ndarray]]
    described: str
    others: Mapping[str, Sequence[dict[str, np.ndarray]]] = field(default_factory=dict)

    @property
    def seen(self) -> str:
        """Which of the others calibration saw; "" for none."""
        return next((name for name in self.others if is_seen(name)), "")


@dataclass(frozen=True)
class Task:
    """The user's metric (higher is better) and how much of it may be lost.

    Attributes:
        evaluate: gives one number, or a score for each sample, whose mean is the metric.
        max_drop: in the metric's own unit.
        known: the metric of the float model, where that was measured before.
    """

    evaluate: Callable[[Session], Any]
    max_drop: float
    known: Scores | None = None

    def __post_init__(self) -> None:
        if not callable(self.evaluate):
            raise UsageError(f"evaluate is {self.evaluate!r}", hint="pass a function: fn(session) -> float")
        hint = "pass a number in the metric's unit, like 0.01"
        object.__setattr__(self, "max_drop", number("max_drop", self.max_drop, hint))

    def measure(self, session: Session) -> Scores:
        """The metric of one session; what the user's function raises passes.

        Raises:
            UsageError: it returned something else than a number or a list of them, or a handful of numbers for more
                samples than that, which are several metrics.
        """
        tally = Tally()
        found = replace(scores_of(self.evaluate(tally.over(session))), ran=tally.least)
        if found.each is not None and found.each.size <= _HANDFUL and found.each.size < tally.rows:
            count = f"{found.each.size} numbers for the {tally.rows} samples that it ran"
            raise UsageError(f"evaluate= returned {count}", hint=f"{HINT}; of several metrics the one that may fall")
        return found

    def reference(self, session: Session) -> Scores:
        """The metric of the float model.

        Raises:
            UsageError: as `measure`, or it is not finite, so that nothing can be compared with it.
        """
        found = self.known or self.measure(session)
        if not np.isfinite(found.value):
            message = f"evaluate= returned {found.value} for the float model, where a finite figure was expected"
            raise UsageError(message, hint="let evaluate= return a number that says how good the model is")
        return found


_HANDFUL = 8
"""So few numbers are several metrics (`[loss, accuracy]`) where there were more samples; more may be of groups."""

MAX_DROP = 0.01
"""How much of a metric may be lost where nothing is said."""


def task_of(evaluate: Callable[[Session], Any] | Task | None, max_drop: float | None) -> Task | None:
    """The metric that a user asked for; None where there is none. A task is taken as it is.

    Raises:
        UsageError: a drop of no metric, or what `Task` refuses.
    """
    if isinstance(evaluate, Task):
        return evaluate
    if evaluate is not None:
        return Task(evaluate, MAX_DROP if max_drop is None else max_drop)
    if max_drop is not None:
        raise UsageError(
            "max_drop needs evaluate=, the metric that may fall",
            hint="pass evaluate=, or drop max_drop; how far outputs may differ is tolerance=",
        )
    return None


def begun(task: Task | None, captured: CapturedModel, steps: Steps) -> Task | None:
    """The task with what the float model reaches: what is wrong with `evaluate` is told before anything is converted.

    Raises:
        UsageError: as `Task.reference`.
    """
    if task is None or task.known is not None:
        return task
    with steps.step("evaluate"):
        return replace(task, known=task.reference(reference_session(captured)))


_SEEN = "that its ranges were taken from"


def is_seen(data: str) -> bool:
    """Whether samples, as they are described, are those that calibration saw."""
    return data.endswith(_SEEN)


HELD_OUT, SEEN, EXAMPLE = "held-out {}", f"{{}} {_SEEN}", "example inputs"


def choose_samples(prepared: Prepared, run: CalibrationRun | None, data: Any) -> Samples:
    """What parity is judged on: samples that calibration did not see, where there are any.

    That is what was held back; without calibration the user's data; else, and said so, what calibration saw, or the
    example inputs. Samples of the other kinds are compared beside them.
    """
    captured, macs = prepared.reference, sum(layer.macs for layer in prepared.layers)
    least, most = _PARITY_SAMPLES
    limit = int(np.clip(_PARITY_MACS // max(1, macs), least, most))
    example = [captured.example_feeds()]
    if run is None:
        given = _given(captured, data, limit) if data is not None else []
        return _named({"the given data": given, EXAMPLE: example}, limit)
    kind = "calibration data" if run.table.source == "data" else "synthetic calibration data"
    if not run.samples:
        return _named({f"{EXAMPLE} (a finished table does not say whether it saw them)": example}, limit)
    return _named({HELD_OUT.format(kind): run.held_out, SEEN.format(kind): run.samples, EXAMPLE: example}, limit)


def _given(captured: CapturedModel, data: Any, limit: int) -> Sequence[Mapping[str, Any]]:
    from deploykit_calibration.observe import first_samples

    return first_samples(captured, data, limit=limit)


def _named(found: Mapping[str, Sequence[Mapping[str, Any]]], limit: int) -> Samples:
    """The first kind that has samples is judged; of the others a few are enough."""
    arrays = {
        data: [{name: tensor.numpy() for name, tensor in feeds.items()} for feeds in samples[:limit]]
        for data, samples in found.items()
        if samples
    }
    (judged, feeds), *others = arrays.items()
    return Samples(feeds, judged, {data: samples[:_OTHERS] for data, samples in others})


def prove(
    target: Target,
    artifact: Artifact,
    prepared: Prepared,
    samples: Samples,
    tolerance: Tolerance,
    *,
    run: CalibrationRun | None = None,
    task: Task | None = None,
) -> tuple[Artifact, ParityReport]:
    """Open an artifact once: golden data, the parity chain with its gate, the task metric where there is one.

    Returns:
        The artifact with its golden data, and the report, with remarks where data were few.
    """
    begins_with, reference = _reference(prepared)
    foreseen, simulation = foreseen_of(prepared), target.simulate(prepared)
    judged = Validation(
        reference,
        samples.feeds,
        samples.described,
        tolerance,
        simulation=simulation,
        others=samples.others,
        seen=samples.seen,
        begins_with=begins_with,
        foreseen=foreseen.simulation if foreseen else None,
    )
    with target.open_for_parity(artifact) as session:
        artifact = make_golden(artifact, samples.feeds, session)
        report = target.validate(artifact, judged, session)
        said = (*prepared.reference.remarks, *_remarks(report, run), *_wild(foreseen, report))
        report = replace(report, notes=(*report.notes, *said))
        if task is not None:
            report = _with_task(report, task, reference, session, run)
    prepared.discard(simulation)
    return with_verdict(artifact, report), report


def _reference(prepared: Prepared) -> tuple[str, Session]:
    """What parity is against: the float model, or the graph that was trained, whose float twin means nothing."""
    captured, trained = prepared.reference, prepared.trained
    if trained is None:
        return FLOAT, reference_session(captured)
    return TRAINED, FunctionSession(trained.run, captured.inputs, captured.outputs)


_CLIPPED_DB = 3.0  # what samples that calibration saw reach more than others
_FEW = 4  # samples: fewer tell a decibel or two


def _remarks(report: ParityReport, run: CalibrationRun | None) -> Iterator[str]:
    """What the samples could not show, or showed: too few to calibrate with, or to judge by."""
    if run is None or not run.samples:
        return
    seen = next((o.worst.sqnr_db for o in report.other_samples if is_seen(o.data)), None)
    if not run.held_out:
        yield "nothing could be held back of one sample: the figures are of the sample that the ranges were taken from"
    elif seen is not None and report.sqnr_db is not None and seen - report.sqnr_db >= _CLIPPED_DB:
        yield (
            f"{run.table.samples} calibration samples do not cover what the model meets: {report.sqnr_db:.1f} dB on"
            f" samples that were held out, {seen:.1f} dB on those that the ranges were taken from; more samples help"
        )
    if run.held_out and len(run.held_out) < _FEW:
        yield f"judged on {len(run.held_out)} held-out sample(s): pass more calibration data for a figure that is sure"


def foreseen_of(prepared: Prepared) -> Foreseen | None:
    """The simulation as it would meet further samples; None where nothing is known of them, or no value is wild."""
    if prepared.table is None:
        return None
    from deploykit_calibration.foreseen import foresee

    return foresee(prepared)


def _wild(foreseen: Foreseen | None, report: ParityReport) -> Iterator[str]:
    """What is said of values that further samples are expected to take far beyond their ranges."""
    if foreseen is None or report.spread is None:
        return
    named = ", ".join(f"`{name}` ({factor:.1f} x)" for name, factor in foreseen.worst())
    yield (
        f"values that differ wildly from sample to sample are expected to leave their ranges: {named}; other samples"
        f" may reach {report.spread.low_db:.1f} dB. Calibrate on more samples, or keep in float what reads these values"
    )


def _with_task(
    report: ParityReport, task: Task, reference: Session, session: Session, run: CalibrationRun | None
) -> ParityReport:
    watch = Watch(run)
    expected, got = task.reference(reference), task.measure(watch.over(session))
    metric = task_metric(task, expected, got)
    notes = (*report.notes, *watch.remarks, *resolution(metric, got.ran))
    return replace(report, notes=notes).with_metric(metric)


def task_metric(task: Task, expected: Scores, got: Scores) -> TaskMetric:
    """The verdict on two measurements.

    Raises:
        UsageError: they are of other numbers of samples.
    """
    value = got.value if np.isfinite(got.value) else NO_FIGURE
    return TaskMetric(expected.value, value, task.max_drop, fall_of(expected, got))


def resolution(metric: TaskMetric, ran: int = 0) -> Iterator[str]:
    """What the metric's samples cannot tell, where the gate asks for it.

    Args:
        ran: samples that the artifact computed for it.
    """
    fall = metric.fall
    if fall is not None and fall.samples < ran:
        yield (
            f"evaluate= returned {fall.samples} scores for {ran} samples that it ran, and each is taken for one of a"
            " sample: if they are not (one for each class, say), return their mean"
        )
    if metric.passed and fall is not None and fall.high > metric.max_drop:
        yield (
            f"the task metric passes on these {fall.samples} samples; on others it may fall by {fall.high:.3g} with"
            f" {CONFIDENCE:.0%} confidence ({fall.method}), where {metric.max_drop:.3g} is allowed: more samples tell"
        )


def profile(plan: Plan, artifact: Artifact, prepared: Prepared) -> Profile | None:
    """Measured (or, where the device is not here, estimated) speed beside the float build.

    None where it is not wanted, and under emulation, whose speed means nothing, of a device without published rates.
    """
    target, device = plan.target, plan.request.device
    if not plan.profile:
        return None
    if target.evidence(artifact) is Evidence.EMULATOR and not device.peak_tops:
        return None
    can_float = Precision.FP32 in target.capabilities().precisions and Precision.FP32 in device.precisions
    if plan.request.precision is Precision.FP32 or not can_float:
        return target.profile(artifact)
    with baseline_artifact(target, prepared) as baseline:
        measured = target.profile(artifact, baseline=("fp32 artifact", baseline))
    return replace(measured, findings=explained(measured, artifact.achieved))
