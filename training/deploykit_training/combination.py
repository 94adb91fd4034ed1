"""`deploykit.compress`: prune, distil, train for the target, export; one call, with the metric behind every step.

The order is that of the field: channels go first, because what is left must be trained; rounding is trained last,
because it is what the target computes. A step that is not needed is left out, and says so.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from deploykit.capture import capture
from deploykit.capture.sources import load_model
from deploykit.contract.arguments import number
from deploykit.contract.errors import ParityError, UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.session import Session
from deploykit.pipeline.evidence import Task
from deploykit.pipeline.export import export
from deploykit.pipeline.fastest import kept
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.reference import reference_session
from deploykit_training.distillation.distiller import distill
from deploykit_training.distillation.terms import Response, Term
from deploykit_training.pruning.job import prune
from deploykit_training.pruning.report import PruneReport
from deploykit_training.qat import qat

if TYPE_CHECKING:
    from deploykit.plugin.artifact import Artifact
    from deploykit_training.trained import Trained

Metric = Callable[[Session], Any]
Train = Callable[[nn.Module], Any] | Iterable[Any]

NOT_NEEDED = 0.01
"""A loss of the metric up to this needs no training for the target, where `max_drop` says nothing."""


@dataclass(frozen=True)
class Step:
    """One step of a compression.

    Attributes:
        name: `float`, `prune`, `train`, `quantise`, `qat` or `export`.
        metric: what `evaluate` gave behind it; None without one, or where the step was left out.
        seconds: wall time, its metric included.
        detail: what it did, or why it was left out.
    """

    name: str
    metric: float | None
    seconds: float
    detail: str


@dataclass(frozen=True)
class Compressed:
    """The result of `deploykit.compress`.

    Attributes:
        artifact: the exported model.
        model: the pruned and trained module.
        steps: what was done, in order.
        pruned: the report of the pruning.
    """

    artifact: Artifact
    model: nn.Module
    steps: tuple[Step, ...]
    pruned: PruneReport

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        steps = [asdict(step) for step in self.steps]
        return {"artifact": str(self.artifact.path), "steps": steps, "pruned": self.pruned.to_dict()}

    def __str__(self) -> str:
        return _table(self.steps)


def compress(
    model: Any,
    target: str = "x86-cpu",
    precision: str = "int8",
    *,
    train: Train,
    example_inputs: Any = None,
    calibration: Any = None,
    evaluate: Metric | None = None,
    max_drop: float | None = None,
    ratio: float | Mapping[str, float] = 0.5,
    kind: str = "structured",
    pruning: Mapping[str, Any] | None = None,
    terms: Term | None = None,
    training: Mapping[str, Any] | None = None,
    dynamic_batch: bool = False,
    output: str | Path | None = None,
    profile: bool = True,
    strict: bool = True,
    progress: bool = True,
) -> Compressed:
    """Prune a model, let it learn from what it was, train it for its target, and export it.

    Args:
        model: nn.Module or LightningModule; left as it is, a copy is worked on.
        target, precision, example_inputs, calibration, dynamic_batch, output, profile: as those of `deploykit.export`.
        train: a loader, for the loop of `deploykit.distill` with the unpruned model as the teacher; or a function that
            trains the module that it is given, in place. Used after pruning, and for the target.
        evaluate: task metric of a session, higher is better; measured behind every step. A training that lowers it is
            taken back.
        max_drop: how much lower than the float model's the artifact's metric may be; None for any.
        ratio, kind, pruning: arguments of `deploykit.prune`; `pruning` are its further ones.
        terms: losses of the distillation; None for `Response()`. Training for the target uses `Response()` where they
            look at modules, which do not run then.
        training: further arguments of the loop, such as `epochs`, `lr`, `max_steps`, `optimizer` excepted.
        strict: raise where the artifact misses a gate, `max_drop` among them.
        progress: show bars on a terminal.
    Returns:
        The artifact, the module, and every step with its metric.
    Raises:
        DeploykitError: as `prune`, `distill`, `qat` and `export` raise.
        ParityError: more than `max_drop` was lost; the message has every step, `.candidate` the artifact.
    """
    make_request(target, precision)
    max_drop = number("max_drop", max_drop, "pass a number in the metric's unit, like 0.01")
    if evaluate is not None and not callable(evaluate):
        raise UsageError(f"evaluate is {evaluate!r}", hint="pass a function: fn(session) -> float")
    found, offered = load_model(model)
    if not isinstance(found, nn.Module):
        raise UsageError("an exported program can be neither pruned nor trained", hint="pass the nn.Module")
    if "optimizer" in (training or {}):
        raise UsageError("an optimizer is of a model before it is pruned", hint='training={"lr": 1e-3}')
    job = _Job(
        copy.deepcopy(found),
        found,
        offered if example_inputs is None else example_inputs,
        kept(calibration),
        evaluate,
        dynamic_batch,
        progress,
        [],
    )
    job.measure("float", lambda: f"{type(found).__name__}", job.float_metric)
    report: list[PruneReport] = []
    job.measure("prune", lambda: _prune(job, report, ratio, kind, target, pruning or {}), job.float_metric)
    job.guarded("train", lambda: _learn(job, train, terms, training or {}), job.float_metric)
    options = {"output": output, "profile": profile, "strict": strict, "progress": progress}
    artifact = _quantised(job, train, terms, training or {}, (target, precision), max_drop, options)
    report[0].finish()
    result = Compressed(artifact, job.model, tuple(job.steps), report[0])
    _check(result, max_drop, strict=strict)
    return result


@dataclass
class _Job:
    """A compression under way."""

    model: nn.Module
    teacher: nn.Module
    example: Any
    calibration: Any
    evaluate: Metric | None
    dynamic_batch: bool
    progress: bool
    steps: list[Step]

    def measure(self, name: str, act: Callable[[], str], metric: Callable[[], float | None]) -> None:
        """Do a step and measure what it left."""
        start = time.perf_counter()
        detail = act()
        value = metric()
        self.steps.append(Step(name, value, time.perf_counter() - start, detail))

    def guarded(self, name: str, act: Callable[[], str], metric: Callable[[], float | None]) -> None:
        """Do a step that is taken back where it lowers the metric."""
        before, state = self.last, copy.deepcopy(self.model.state_dict())
        self.measure(name, act, metric)
        step = self.steps[-1]
        if before is not None and step.metric is not None and step.metric < before:
            self.model.load_state_dict(state)
            taken = f"taken back: {step.metric:.4g} after it ({step.detail})"
            self.steps[-1] = Step(name, before, step.seconds, taken)

    @property
    def last(self) -> float | None:
        """The metric behind the last step that has one."""
        return next((step.metric for step in reversed(self.steps) if step.metric is not None), None)

    def float_metric(self) -> float | None:
        """The metric of the model as it is."""
        if self.evaluate is None:
            return None
        captured = capture(self.model, example_inputs=self.example, dynamic_batch=self.dynamic_batch)
        return _scored(self.evaluate, reference_session(captured))


def _scored(evaluate: Metric, session: Session) -> float:
    """What a metric says of a session, refused where it is none, as an export refuses it."""
    return Task(evaluate, 0.0).measure(session).value


def _prune(job: _Job, report: list[PruneReport], ratio: Any, kind: str, target: str, pruning: Mapping[str, Any]) -> str:
    options = {"target": target, "calibration": job.calibration, **pruning}
    report.append(prune(job.model, job.example, ratio, kind, **options))
    found = report[0]
    return f"{found.sparsity:.1%} of the weights gone, {found.macs_before:,} -> {found.macs_after:,} MACs"


def _learn(job: _Job, train: Train, terms: Term | None, training: Mapping[str, Any], model: Any = None) -> str:
    """Train the model as it is now; in the block of `qat` that is the placed graph."""
    if callable(train):
        train(job.model)
        return "your own training"
    wanted = terms if terms is not None and (model is None or not terms.student_modules) else Response()
    history = distill(job.model, job.teacher, wanted).fit(train, **{"progress": job.progress, **training})
    losses = f"loss {history.losses[0]['total']:.4g} -> {history.losses[-1]['total']:.4g}"
    return f"{history.steps} steps of distillation, {losses}"


def _quantised(
    job: _Job,
    train: Train,
    terms: Term | None,
    training: Mapping[str, Any],
    asked: tuple[str, str],
    max_drop: float | None,
    options: Mapping[str, Any],
) -> Artifact:
    """Train for the target where that is needed, and export."""
    if not Precision(asked[1]).is_static:
        job.steps.append(Step("qat", None, 0.0, f"left out: {asked[1]} fixes no ranges"))
        return _exported(job, None, asked, options)
    with_data = {"example_inputs": job.example, "calibration": job.calibration, "progress": job.progress}
    trained = qat(job.model, *asked, **with_data)
    metric = lambda: None if job.evaluate is None else _scored(job.evaluate, trained.session())  # noqa: E731
    before = job.last
    job.measure("quantise", lambda: f"{asked[1]} as {asked[0]} computes it", metric)
    allowed = NOT_NEEDED if max_drop is None else max_drop
    if before is not None and job.last is not None and before - job.last <= allowed:
        job.steps.append(Step("qat", None, 0.0, f"left out: rounding loses no more than {allowed:g}"))
    else:
        with trained:
            job.guarded("qat", lambda: _learn(job, train, terms, training, trained), metric)
    return _exported(job, trained, asked, options)


def _exported(job: _Job, trained: Trained | None, asked: tuple[str, str], options: Mapping[str, Any]) -> Artifact:
    start = time.perf_counter()
    if trained is not None:
        artifact = trained.export(dynamic_batch=job.dynamic_batch, **options)
    else:
        artifact = export(
            job.model,
            *asked,
            example_inputs=job.example,
            calibration=job.calibration,
            dynamic_batch=job.dynamic_batch,
            **options,
        )
    metric = None
    if job.evaluate is not None:
        with artifact.open() as session:
            metric = _scored(job.evaluate, session)
    detail = f"{artifact.size_bytes:,} bytes at {artifact.path}"
    job.steps.append(Step("export", metric, time.perf_counter() - start, detail))
    return artifact


def _check(result: Compressed, max_drop: float | None, *, strict: bool) -> None:
    first, last = result.steps[0].metric, result.steps[-1].metric
    if max_drop is None or not strict or first is None or last is None or first - last <= max_drop:
        return
    raise ParityError(
        f"the artifact's metric is {last:.4g}, the float model's {first:.4g}: {max_drop:g} may be lost\n"
        f"{_table(result.steps)}",
        report=result.artifact.parity,
        candidate=result.artifact,
        hint="a smaller ratio, more training, or scope= sensitivity in pruning=",
    )


def _table(steps: Iterable[Step]) -> str:
    rows = [(s.name, "-" if s.metric is None else f"{s.metric:.4f}", f"{s.seconds:.1f} s", s.detail) for s in steps]
    return "\n".join(f"{name:9} {metric:>8} {seconds:>8}  {detail}" for name, metric, seconds, detail in rows)
