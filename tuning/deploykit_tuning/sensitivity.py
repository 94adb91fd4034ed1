"""`deploykit.sensitivity`: which layers make a quantised model's noise, and what keeping them in float would buy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import CalibrationError
from deploykit.contract.progress import Progress
from deploykit.pipeline.capturing import captured_of
from deploykit.pipeline.following import PRECISION, TARGET, aimed, opened
from deploykit.pipeline.plan import make_request, needs_data
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.steps import calibrate, prepare

if TYPE_CHECKING:
    from deploykit.contract.recipe import Recipe
    from deploykit.contract.request import Request
    from deploykit_calibration.sensitivity import Sensitivity


def sensitivity(
    model: Any,
    target: str = TARGET,
    calibration: Any = None,
    *,
    precision: str = PRECISION,
    example_inputs: Any = None,
    calibration_method: str = "default",
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: Any = None,
    cache_dir: str | Path | None = None,
    progress: Progress = True,
    algorithms: Sequence[str] = (),
    recipe: Recipe | str | Path | None = None,
    rest: str = "",
) -> Sensitivity:
    """Rank the layers of a model by what their rounding does to its outputs, on a target and in a precision.

    Nothing is exported: the placed graph is simulated, and a few gradients tell what each rounding does.

    Args:
        model, target, calibration, precision, example_inputs, calibration_method, dynamic_batch, dynamic_shapes,
            include, exclude, options, cache_dir, progress, algorithms, recipe: as `deploykit.export` takes them.
            Scored are samples of the calibration data that neither ranges nor algorithms saw, where there are any;
            the example inputs where that is a finished table.
        rest: what a layer that is kept becomes. By default float, in the type that the target's file has between its
            integers; `"int8-weights"` with `precision="int4-weight-only"`, where the target writes both widths.
    Returns:
        `.layers`, the ranking; `.keep(k)`, `.predict(names)` and `.front()`, candidates with predicted SQNR, cost and
        share of quantised multiply-accumulates; a table as `str`; `.to_dict()`.
    Raises:
        UsageError, UnknownTargetError, UnsupportedPrecisionError, MissingDependencyError: before anything is computed;
            UsageError also where the precision rounds nothing of the model there.
        CaptureError, CalibrationError: the model cannot be traced, there are no data for a static precision, or the
            model has no floating output.
    """
    from deploykit_calibration.sensitivity import sensitivity as rank

    followed = opened(recipe)
    target, precision = aimed(followed, target, precision)
    request = make_request(
        target,
        precision,
        method=calibration_method,
        include=include,
        exclude=exclude,
        options=options,
        algorithms=algorithms,
        recipe=followed,
    )
    steps = Steps(enabled=progress)
    with steps.step("capture"):
        captured, data = captured_of(
            model,
            example_inputs,
            calibration,
            dynamic_batch=dynamic_batch,
            dynamic_shapes=dynamic_shapes,
            check=partial(_refuse_missing, request),
        )
    with steps.step("calibrate", spinner=False):
        run = None if data is None else calibrate(captured, data, cache_dir=cache_dir, progress=steps.counted)
    with steps.step("score"):
        prepared = prepare(request, captured, run)
        return rank(prepared, run.judged if run is not None else (), rest=rest)


def _refuse_missing(request: Request, data: Any) -> None:
    """Refuse what needs data without any, before the model is captured."""
    if data is None and needs_data(request):
        raise CalibrationError(
            f"{request.precision} needs calibration data, and there is none to find sensitive layers on",
            hint='pass calibration= (a DataLoader, batches, an .npz path), or calibration="synthetic" for made-up data',
        )
