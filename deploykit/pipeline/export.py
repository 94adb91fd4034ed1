"""`deploykit.export`: the pipeline, from a PyTorch model to a verified, profiled, published artifact.

plan ─▶ capture ─▶ calibrate ─▶ convert ─▶ golden ─▶ validate ─▶ profile ─▶ gates ─▶ publish
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from deploykit.contract.progress import Advance, Progress
from deploykit.contract.recipe import Recipe
from deploykit.contract.session import Session
from deploykit.judge.parity import Tolerance
from deploykit.pipeline import evidence as _evidence
from deploykit.pipeline.capturing import captured_of
from deploykit.pipeline.fastest import SUFFIX, export_fastest
from deploykit.pipeline.following import PRECISION, TARGET, aimed, opened
from deploykit.pipeline.plan import Goals, Plan, make_plan, make_request, needs_data, refuse_missing
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.publishing import published
from deploykit.pipeline.several import export_several
from deploykit.pipeline.steps import prepare
from deploykit.plugin.artifact import Exported

AUTO = "auto"

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.observe import CalibrationRun


class Settings(TypedDict, total=False):
    """The arguments of `export` behind model and target, for its two signatures."""

    example_inputs: Any
    calibration: Any
    calibration_method: str
    dynamic_batch: bool
    dynamic_shapes: Any
    include: Sequence[str]
    exclude: Sequence[str]
    options: Any
    evaluate: Callable[[Session], Any] | None
    max_drop: float | None
    tolerance: Tolerance | None
    min_placement: float | None
    min_speedup: float | None
    profile: bool
    strict: bool
    output: str | Path | None
    cache_dir: str | Path | None
    progress: Progress
    algorithms: Sequence[str]
    recipe: Recipe | str | Path | None


@overload
def export(model: Any, target: str = ..., precision: str = ..., **settings: Unpack[Settings]) -> Exported: ...


@overload
def export(
    model: Any, target: list[str] | tuple[str, ...], precision: str = ..., **settings: Unpack[Settings]
) -> list[Exported]: ...


def export(
    model: Any,
    target: str | list[str] | tuple[str, ...] = TARGET,
    precision: str = PRECISION,
    *,
    example_inputs: Any = None,
    calibration: Any = None,
    calibration_method: str = "default",
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: Any = None,
    evaluate: Callable[[Session], Any] | None = None,
    max_drop: float | None = None,
    tolerance: Tolerance | None = None,
    min_placement: float | None = None,
    min_speedup: float | None = None,
    profile: bool = True,
    strict: bool = True,
    output: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = True,
    algorithms: Sequence[str] = (),
    recipe: Recipe | str | Path | None = None,
) -> Exported | list[Exported]:
    """Export a PyTorch model to a target, prove that the export is right, and publish it as an artifact.

    Args:
        model: `nn.Module`, `LightningModule`, `torch.export.ExportedProgram`, `"package.module:factory"` (which
            returns the model, or model and example inputs), or what `deploykit.pipeline.capture` gave. Never changed.
        target: device, toolchain, or `"device:toolchain"`; `deploykit.targets()` lists them. `"device:fastest"`
            exports with each installed toolchain of the device, which must be this machine, and keeps the fastest that
            passes; `artifact.choice` has the table. By default that of the recipe, or `x86-cpu`. A list of targets is
            exported from one capture and one calibration, and gives a list of artifacts.
        precision: such as `fp32`, `fp16`, `int8`, `int8-dynamic`; a target says which it has. By default that of
            the recipe, or `int8`. `"auto"` exports in each of fp16, bf16, int8, int8-dynamic, mixed and fp32 that the
            target has, and keeps the fastest that passes, by latency measured here, or by estimate where the device is
            not here; int8 that misses is tuned first. `artifact.choice` has the table.
        example_inputs: tuple (positional) or dict (by name) of tensors; not needed where the model, the factory or the
            calibration data tells the inputs: one sample of a file, a tensor, a dict or a DataLoader, the first batch
            of other iterables as it is. An axis that is not dynamic has the size that it has there.
        calibration: for static precisions: iterable of tensors, `(inputs, labels)` tuples or dicts, a DataLoader, a
            `.npz`, `.npy` or `.safetensors` path, a `CalibrationTable`, what `deploykit.pipeline.calibrate` gave, or
            `"synthetic"` (made-up data, marked as such).
        calibration_method: `minmax`, `percentile` (99.99, or `percentile:99.9`), `entropy`, `mse`, `default` (chosen
            for each tensor), or `best` (several are tried on a few samples, and the most accurate is kept).
        dynamic_batch: keep axis 0 of every input dynamic.
        dynamic_shapes: as `torch.export.export` takes them, or axes by name, `{"x": {0: "batch", 1: "length"}}`;
            instead of `dynamic_batch`. The `dummy_inputs` of a Hugging Face model have a dynamic batch and sequence.
        include, exclude: module-path patterns (`"encoder.layer.*"`) of layers to quantise, or to keep in float.
        options: the toolchain's options, as a mapping or its options dataclass.
        evaluate: task metric, higher is better; called with a session of the float model and one of the artifact. It
            returns one number, or a score for each sample (0 and 1 of top-1, say), whose mean is the metric: the drop
            then has an interval. Its data should be none that calibration saw; that is noticed, and said.
        max_drop: how much lower the artifact's metric may be, in the metric's own unit; 0.01 if not given. Only with
            `evaluate`.
        tolerance: parity gate; None for the precision's default.
        min_placement: share of multiply-accumulates, 0 to 1, that must run in the asked precision.
        min_speedup: how many times faster than the float build it must be; needs `profile`, and the device to be this
            machine: an estimate passes no gate.
        profile: measure latency, throughput and memory, beside the float build.
        strict: raise when a gate is missed; False returns the artifact marked `failed`.
        output: folder of the artifact; an artifact that is there is replaced.
            Default `out/<model>-<target>-<precision>`. Of a list of targets each has a folder in it.
        cache_dir: keep calibration statistics here and reuse them for the same model and data.
        progress: show the steps and their seconds on a terminal or in a notebook; False shows nothing, and a function
            is told each `deploykit.contract.progress.Event`. The logger `deploykit` has them, too.
        algorithms: names of algorithms to run over the prepared model, in this order.
        recipe: what was decided before (`plan.recipe` of `deploykit.tune`, `artifact.recipe`, or the path of a recipe
            file), in place of precision, method, patterns, algorithms and options. With the same model and data, the
            artifact is the same, byte for byte.
    Returns:
        The published artifact, whose `parity` is never None; of a list of targets a list of them.
    Raises:
        UsageError, UnknownTargetError, UnsupportedPrecisionError, MissingDependencyError: before anything is computed.
        CaptureError, CalibrationError, ConversionError: naming layer, source line and next step.
        ParityError, PlacementError, PerformanceError: a gate was missed; `.candidate` is kept at `<output>.failed`.
    """
    request = dict(locals())  # first of all: the arguments, and nothing else
    if isinstance(target, list | tuple):
        return export_several(export, request)
    task = _evidence.task_of(evaluate, max_drop)
    recipe = opened(recipe)
    target, precision = aimed(recipe, target, precision)
    if precision == AUTO:
        from deploykit_tuning.auto import export_auto

        return Exported.of(export_auto(export, {**request, "target": target}))
    if isinstance(target, str) and target.endswith(SUFFIX):
        return Exported.of(export_fastest(export, {**request, "target": target, "precision": precision}))
    wanted = make_request(
        target,
        precision,
        method=calibration_method,
        include=include,
        exclude=exclude,
        options=options,
        algorithms=algorithms,
        recipe=recipe,
    )
    goals = Goals(tolerance, min_placement, min_speedup)
    plan = make_plan(model, wanted, output=output, goals=goals, profile=profile)
    steps = Steps(enabled=progress)
    with steps.step("capture"):
        captured, data = captured_of(
            model,
            example_inputs,
            calibration,
            dynamic_batch=dynamic_batch,
            dynamic_shapes=dynamic_shapes,
            check=partial(refuse_missing, plan),
        )
    refuse_foreign(plan, captured)
    task = _evidence.begun(task, captured, steps)
    with steps.step("calibrate", spinner=False):
        run = calibrated(plan, captured, data, cache_dir, progress=steps.counted)
    make = partial(prepare, plan.request, captured, run, target=plan.target)
    return Exported.of(published(plan, make, run, data=data, task=task, steps=steps, strict=strict))


def refuse_foreign(plan: Plan, captured: CapturedModel) -> None:
    """Refuse a recipe of another graph, before data is read."""
    from deploykit_calibration.recipes import check_recipe

    if plan.request.recipe is not None:
        check_recipe(plan.request.recipe, plan.target.adapt(captured, plan.request))


def calibrated(
    plan: Plan,
    captured: CapturedModel,
    data: Any,
    cache_dir: str | Path | None,
    *,
    progress: bool | Advance,
    always: bool = False,
) -> CalibrationRun | None:
    """Observe the model where the request needs it, or `always`; None where it is not observed."""
    if not (always or needs_data(plan.request)):
        return None
    from deploykit_calibration.observe import run_calibration

    return run_calibration(captured, data, progress=progress, cache_dir=cache_dir, hold_out=True)
