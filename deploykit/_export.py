"""`deploykit.export`: the pipeline, from a PyTorch model to a verified, profiled, published artifact.

plan ─▶ capture ─▶ calibrate ─▶ convert ─▶ golden ─▶ validate ─▶ profile ─▶ gates ─▶ publish
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit._calibration import CalibrationRun, calibration_service
from deploykit._gates import Gates
from deploykit._staging import baseline_artifact, draft, finish, make_golden
from deploykit.artifact import Artifact, load
from deploykit.errors import ArtifactError, CalibrationError, UsageError
from deploykit.manifest import MANIFEST_NAME, CalibrationInfo
from deploykit.parity import DEFAULT_TOLERANCES, TaskMetric, Tolerance
from deploykit.precision import Precision
from deploykit.progress import Steps
from deploykit.registry import Resolved, resolve
from deploykit.session import Session
from deploykit.storage import publish_folder, staging_folder
from deploykit.target import Conversion, ConversionJob, Validation

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

METHODS = ("default", "minmax", "percentile", "entropy", "mse")
# Enough samples for a verdict within a few seconds of PyTorch on two cores: fewer for heavy models.
_PARITY_MACS = 40_000_000_000
_PARITY_SAMPLES = (8, 64)


@dataclass(frozen=True)
class Plan:
    """Everything that can be decided, and refused, before the model is touched."""

    resolved: Resolved
    precision: Precision
    method: str
    options: Any
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    output: Path
    gates: Gates


def export(
    model: Any,
    target: str = "x86-cpu",
    precision: str = "int8",
    *,
    example_inputs: Any = None,
    calibration: Any = None,
    calibration_method: str = "default",
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: Any = None,
    evaluate: Callable[[Session], float] | None = None,
    max_drop: float = 0.01,
    tolerance: Tolerance | None = None,
    min_placement: float | None = None,
    min_speedup: float | None = None,
    profile: bool = True,
    strict: bool = True,
    output: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Artifact:
    """Export a PyTorch model to a target, prove that the export is right, and publish it as an artifact.

    Args:
        model: `nn.Module`, `LightningModule`, `torch.export.ExportedProgram`, or `"package.module:factory"`
            (which returns the model, or model and example inputs). Never changed.
        target: device, toolchain, or `"device:toolchain"`; `deploykit.targets()` lists them.
        precision: such as `fp32`, `fp16`, `int8`, `int8-dynamic`; a target says which it has.
        example_inputs: tuple (positional) or dict (by name) of tensors; not needed where the model, the factory or a
            calibration file tells the inputs.
        calibration: for static precisions: iterable of tensors, `(inputs, labels)` tuples or dicts, a DataLoader, a
            `.npz` or `.safetensors` path, a `CalibrationTable`, or `"synthetic"` (made-up data, marked as such).
        calibration_method: `minmax`, `percentile`, `entropy`, `mse`, or `default` (the best measured per scheme).
        dynamic_batch: keep axis 0 of every input dynamic.
        dynamic_shapes: as `torch.export.export` takes them; instead of `dynamic_batch`.
        include, exclude: module-path patterns (`"encoder.layer.*"`) of layers to quantise, or to keep in float.
        options: the toolchain's options, as a mapping or its options dataclass.
        evaluate: task metric, higher is better; called with a session of the float model and one of the artifact.
        max_drop: how much lower the artifact's metric may be, in the metric's own unit.
        tolerance: parity gate; None for the precision's default.
        min_placement: share of multiply-accumulates, 0 to 1, that must run in the asked precision.
        min_speedup: how many times faster than the float build it must be; needs `profile`.
        profile: measure latency, throughput and memory, beside the float build.
        strict: raise when a gate is missed; False returns the artifact marked `failed`.
        output: folder of the artifact; an artifact that is there is replaced.
            Default `out/<model>-<target>-<precision>`.
        cache_dir: keep calibration statistics here and reuse them for the same model and data.
        progress: show the running step on a terminal.
    Returns:
        The published artifact.
    Raises:
        UsageError, UnknownTargetError, UnsupportedPrecisionError, MissingDependencyError: before anything is computed.
        CaptureError, CalibrationError, ConversionError: naming layer, source line and next step.
        ParityError, PlacementError, PerformanceError: a gate was missed; `.candidate` is kept at `<output>.failed`.
    """
    plan = _plan(model, target, precision, calibration_method, options, include, exclude, output)
    plan = replace(plan, gates=_gates(plan.precision, tolerance, min_placement, min_speedup, profile))
    steps = Steps(enabled=progress)
    with steps.step("capture"):
        captured, data = _capture(model, example_inputs, dynamic_batch, dynamic_shapes, calibration)
    with steps.step("calibrate", spinner=False):
        run = _calibrate(plan, captured, data, cache_dir, progress)
    with staging_folder(plan.output) as folder:
        with steps.step("convert"):
            job = _job(plan, captured, run, folder)
            conversion = plan.resolved.target.convert(job)
        with steps.step("validate"):
            samples, described = _samples(captured, run, data, conversion)
            artifact = draft(plan.resolved, job, conversion, calibration=_calibration_info(run, plan.method))
            artifact = make_golden(artifact, samples, plan.resolved.target)
            report = _validate(plan, artifact, conversion, captured, samples, described, evaluate, max_drop)
        with steps.step("profile"):
            measured = _profile(plan, artifact, job) if profile else None
        misses = plan.gates.misses(artifact.achieved, report, measured)
        artifact = finish(artifact, report, measured, failed=bool(misses), log=conversion.log)
        kept = plan.output if not (misses and strict) else plan.output.with_name(f"{plan.output.name}.failed")
        publish_folder(folder, kept)
    published = load(kept)
    if misses and strict:
        raise misses[0].error(published)
    return published


def _plan(
    model: Any,
    target: str,
    precision: str,
    method: str,
    options: Any,
    include: Sequence[str],
    exclude: Sequence[str],
    output: str | Path | None,
) -> Plan:
    resolved = resolve(target)
    try:
        wanted = Precision(precision)
    except ValueError:
        raise UsageError(f"unknown precision {precision!r}", hint=f"one of {', '.join(map(str, Precision))}") from None
    if method not in METHODS:
        raise UsageError(f"unknown calibration_method {method!r}", hint=f"one of {', '.join(METHODS)}")
    for name, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise UsageError(f"{name} must be a list of patterns, not one string", hint=f"{name}=[{patterns!r}]")
    resolved.target.check_precision(wanted, resolved.device)
    resolved.target.check_installed(export=True)
    return Plan(
        resolved,
        wanted,
        method,
        resolved.target.parse_options(options),
        tuple(include),
        tuple(exclude),
        _output(output, model, target, wanted),
        Gates(),
    )


def _gates(
    precision: Precision, tolerance: Tolerance | None, placement: float | None, speedup: float | None, profile: bool
) -> Gates:
    if speedup is not None and not profile:
        raise UsageError("min_speedup needs profile=True", hint="drop profile=False or min_speedup")
    if placement is not None and not 0.0 <= placement <= 1.0:
        raise UsageError(f"min_placement is a share from 0 to 1, not {placement}")
    return Gates(precision, tolerance or DEFAULT_TOLERANCES[precision], placement, speedup)


def _output(output: str | Path | None, model: Any, target: str, precision: Precision) -> Path:
    if output is None:
        name = model.rsplit(":", 1)[-1] if isinstance(model, str) else type(model).__name__
        output = Path("out") / re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name.lower()}-{target}-{precision}")
    path = Path(output)
    if path.is_symlink():
        raise ArtifactError(f"{path} is a symbolic link; it is left alone", hint="choose another output=, or remove it")
    if path.exists() and not (path / MANIFEST_NAME).is_file() and not _is_empty_folder(path):
        raise ArtifactError(
            f"{path} exists and is not an artifact; it is left alone", hint="choose another output=, or remove it"
        )
    return path.parent.resolve() / path.name


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _capture(
    model: Any, example_inputs: Any, dynamic_batch: bool, dynamic_shapes: Any, calibration: Any
) -> tuple[CapturedModel, Any]:
    from deploykit.capture import calibration_source, capture, inputs_from_file, load_model

    found, offered = load_model(model)  # once: a factory may be slow, or random
    data = calibration if calibration is not None else calibration_source(found)
    inputs = offered if example_inputs is None else example_inputs
    if inputs is None and isinstance(data, str | Path) and data != "synthetic":
        inputs = inputs_from_file(found, Path(data))
    return capture(found, example_inputs=inputs, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes), data


def _calibrate(
    plan: Plan, captured: CapturedModel, data: Any, cache_dir: str | Path | None, progress: bool
) -> CalibrationRun | None:
    if not plan.precision.is_static:
        return None
    if data is None:
        raise CalibrationError(
            f"{plan.precision} fixes activation ranges at export, and there is no data to take them from",
            hint='pass calibration= (a DataLoader, batches, an .npz path or a CalibrationTable), choose "int8-dynamic",'
            ' or say calibration="synthetic" for made-up ranges',
        )
    return calibration_service().run_calibration(captured, data, progress=progress, cache_dir=cache_dir)


def _job(plan: Plan, captured: CapturedModel, run: CalibrationRun | None, folder: Path) -> ConversionJob:
    return ConversionJob(
        captured=captured,
        precision=plan.precision,
        device=plan.resolved.device,
        folder=folder,
        table=run.table if run else None,
        method=plan.method,
        include=plan.include,
        exclude=plan.exclude,
        options=plan.options,
    )


def _samples(
    captured: CapturedModel, run: CalibrationRun | None, data: Any, conversion: Conversion
) -> tuple[list[dict[str, np.ndarray]], str]:
    """Feeds for parity and golden data, and what they are."""
    least, most = _PARITY_SAMPLES
    macs = max(1, sum(conversion.achieved.macs.values()))
    limit = int(np.clip(_PARITY_MACS // macs, least, most))
    described = "calibration data" if run is None or run.table.source == "data" else "synthetic calibration data"
    if run is not None:
        chosen = list(run.samples[:limit])
    else:
        chosen = calibration_service().first_samples(captured, data, limit=limit) if data is not None else []
    if not chosen:
        specs = zip(captured.inputs, captured.example_inputs, strict=True)
        chosen, described = [{spec.name: tensor for spec, tensor in specs}], "example inputs"
    return [{name: tensor.numpy() for name, tensor in feeds.items()} for feeds in chosen], described


def _calibration_info(run: CalibrationRun | None, method: str) -> CalibrationInfo | None:
    if run is None:
        return None
    return CalibrationInfo(run.table.source, run.table.samples, method, run.table.data_fingerprint)


def _validate(
    plan: Plan,
    artifact: Artifact,
    conversion: Conversion,
    captured: CapturedModel,
    samples: Sequence[dict[str, np.ndarray]],
    described: str,
    evaluate: Callable[[Session], float] | None,
    max_drop: float,
) -> Any:
    from deploykit._reference import reference_session

    reference = reference_session(captured)
    judged = Validation(reference, samples, described, plan.gates.tolerance, conversion.simulation)
    report = plan.resolved.target.validate(artifact, judged)
    if evaluate is None:
        return report
    expected = float(evaluate(reference))
    if not np.isfinite(expected):
        raise UsageError(f"evaluate= returned {expected} for the float model, where a finite figure was expected")
    with plan.resolved.target.open_for_parity(artifact) as session:
        got = float(evaluate(session))
    # Not finite is the worst there can be; a manifest is JSON and holds finite figures only.
    got = got if np.isfinite(got) else float(np.finfo(np.float64).min)
    return report.with_metric(TaskMetric(expected, got, max_drop))


def _profile(plan: Plan, artifact: Artifact, job: ConversionJob) -> Any:
    target = plan.resolved.target
    can_float = Precision.FP32 in target.capabilities().precisions and Precision.FP32 in plan.resolved.device.precisions
    if plan.precision is Precision.FP32 or not can_float:
        return target.profile(artifact)
    with baseline_artifact(plan.resolved, job, artifact) as baseline:
        return target.profile(artifact, baseline=("fp32 artifact", baseline))
