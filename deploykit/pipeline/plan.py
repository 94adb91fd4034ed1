"""Everything about an export that can be decided, and refused, before the model is touched."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifact.replace import replaceable
from deploykit.contract.arguments import names, number
from deploykit.contract.errors import CalibrationError, UsageError
from deploykit.contract.near import near, question
from deploykit.contract.precision import Precision, registered
from deploykit.contract.recipe import Recipe
from deploykit.contract.request import Request
from deploykit.judge.parity import Tolerance, tolerance_of
from deploykit.pipeline.following import aimed, check_silent, options_of
from deploykit.pipeline.gates import Gates
from deploykit.pipeline.unused import ALGORITHMS, METHOD, OPTIONS, refuse_unused
from deploykit.plugin.registry import Resolved, resolve
from deploykit.plugin.target import Target
from deploykit_calibration.algorithms import algorithm
from deploykit_calibration.ranges import METHODS

_METHODS = ("default", "best", *METHODS[1:])


@dataclass(frozen=True)
class Plan:
    """A checked request, and what is to be done with what it makes.

    Attributes:
        request: what the artifact shall be.
        target: the plugin that makes it.
        output: absolute folder of the artifact.
        gates: what it must reach.
        profile: whether to measure.
    """

    request: Request
    target: Target
    output: Path
    gates: Gates
    profile: bool


@dataclass(frozen=True)
class Goals:
    """The gates as the user gave them."""

    tolerance: Tolerance | None
    min_placement: float | None
    min_speedup: float | None


def make_plan(model: Any, request: Request, *, output: str | Path | None, goals: Goals, profile: bool) -> Plan:
    """Check what is to be done with a request.

    Args:
        model: as `deploykit.export` takes it; names the folder where no output is given.
        request: of `make_request`.
        output: the folder of the artifact; None for one beside the others.
        goals: the gates as the user gave them.
        profile: whether to measure.
    Raises:
        UsageError, MissingDependencyError: it cannot be met.
        ArtifactError: the output folder is something else.
    """
    resolved = resolve(request.target)
    resolved.target.check_installed(export=True)
    return Plan(
        request=request,
        target=resolved.target,
        output=replaceable(default_output(model, request.target, request.precision) if output is None else output),
        gates=_gates(request.precision, goals, resolved, profile=profile),
        profile=profile,
    )


def needs_data(request: Request) -> bool:
    """Whether calibration data decides anything of an artifact: ranges that are fixed at export, or an algorithm."""
    return request.precision.is_static or any(algorithm(name).needs for name in request.algorithms)


def refuse_missing(plan: Plan, data: Any) -> None:
    """Refuse a static precision without data, before the model is captured."""
    if data is not None or not needs_data(plan.request):
        return
    if not plan.request.precision.is_static:
        asked = ", ".join(plan.request.algorithms)
        raise CalibrationError(f"{asked}: there is no data to run the model on", hint="pass calibration=")
    instead = f' choose precision="{plan.gates.instead}",' if plan.gates.instead else ""
    raise CalibrationError(
        f"{plan.request.precision} fixes activation ranges at export, and there is no data to take them from",
        hint=f"pass calibration= (a DataLoader, batches, an .npz path or a CalibrationTable),{instead}"
        ' or say calibration="synthetic" for made-up ranges',
    )


def make_request(
    target: str,
    precision: str = "int8",
    *,
    method: str = "default",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: Any = None,
    algorithms: Sequence[str] = (),
    recipe: Recipe | None = None,
) -> Request:
    """Names as a user types them, as a checked `Request`; arguments as those of `deploykit.export`.

    A recipe stands for all but target and precision, which are its own.

    Raises:
        UsageError, UnknownTargetError, UnsupportedPrecisionError: it cannot be met, or the precision has no use for
            something that was asked for.
    """
    resolved, wanted = resolve(target), precision_of(precision)
    if recipe is not None:
        given = {"calibration_method": method, "include": include, "exclude": exclude, "algorithms": algorithms}
        check_silent(recipe, given)
        aimed(recipe, target, precision)
        options = options_of(recipe, resolved, options)
        method, include, exclude = recipe.method, recipe.include, recipe.exclude
        algorithms = tuple(step.name for step in recipe.algorithms)
    kind, _, argument = str(method).partition(":")
    if kind not in _METHODS or (argument and kind != "percentile"):
        raise UsageError(f"unknown calibration_method {method!r}", hint=f"one of {', '.join(_METHODS)}")
    algorithms = names("algorithms", algorithms, "bias-correction")
    for name in algorithms:
        algorithm(name)
    resolved.target.check_precision(wanted, resolved.device)
    parsed = resolved.target.parse_options(options)
    resolved.target.check_options(parsed, resolved.device)
    include = names("include", include, "layer1.*", "patterns")
    exclude = names("exclude", exclude, "layer1.*", "patterns")
    given = {"include": include, "exclude": exclude, METHOD: method, ALGORITHMS: algorithms, OPTIONS: parsed}
    refuse_unused(resolved.target, wanted, given)
    return Request(
        target=target,
        toolchain=resolved.target.name,
        device=resolved.device,
        precision=wanted,
        method=method,
        include=include,
        exclude=exclude,
        options=parsed,
        algorithms=algorithms,
        recipe=recipe,
    )


PRECISION_WORDS = {
    "half": ("fp16",),
    "float16": ("fp16",),
    "float": ("fp32",),
    "float32": ("fp32",),
    "bfloat16": ("bf16",),
    "float8": ("fp8",),
    "dynamic": ("int8-dynamic",),
    "static": ("int8",),
    "i8": ("int8",),
    "qint8": ("int8",),
    "uint8": ("int8",),
    "w8a8": ("int8",),
    "w8a16": ("int8-weight-only",),
    "int4": ("int4-weight-only", "int4-palette"),
    "w4a16": ("int4-weight-only",),
    "weight-only": ("int8-weight-only", "int4-weight-only"),
}
"""Other words for precisions, which are offered and never taken for them."""


def precision_of(name: str) -> Precision:
    """A precision by its name.

    Raises:
        UsageError: there is none of that name; the hint has near ones.
    """
    if name == "auto":
        hint = 'name one, such as precision="int8"; deploykit.export(precision="auto") chooses'
        raise UsageError("precision='auto' is what deploykit.export finds by measuring, and no precision", hint=hint)
    try:
        return Precision(name)
    except ValueError:
        names = [str(precision) for precision in (*Precision, *registered())]
        meant = near(name, names, PRECISION_WORDS) if isinstance(name, str) else []
        raise UsageError(
            f"unknown precision {name!r}", hint=f"{question(meant, '')} one of {', '.join(names)}".strip()
        ) from None


def _gates(precision: Precision, goals: Goals, resolved: Resolved, *, profile: bool) -> Gates:
    if goals.min_speedup is not None and not profile:
        raise UsageError("min_speedup needs profile=True", hint="drop profile=False or min_speedup")
    share, factor = "it is a share from 0 to 1, such as 0.9", "it is a factor above 0, such as 1.5"
    min_placement = number("min_placement", goals.min_placement, share, least=0.0, most=1.0)
    min_speedup = number("min_speedup", goals.min_speedup, factor, least=math.ulp(0.0))
    tolerance = tolerance_of(precision) if goals.tolerance is None else goals.tolerance
    if not isinstance(tolerance, Tolerance):
        raise UsageError(f"tolerance is {tolerance!r}", hint="tolerance=deploykit.Tolerance(min_sqnr_db=20.0)")
    return Gates(
        precision=precision,
        tolerance=tolerance,
        min_placement=min_placement,
        min_speedup=min_speedup,
        instead=_first(precision.row.gentler, resolved),
        reaches_further=_first(precision.row.further, resolved),
    )


def _first(wanted: Sequence[str], resolved: Resolved) -> Precision | None:
    """The first of some names that the target and the device's silicon have."""
    both = [p for p in resolved.target.capabilities().precisions if p in resolved.device.precisions]
    return next((Precision(name) for name in wanted if name in both), None)


def default_output(model: Any, target: str, precision: str) -> Path:
    """Where an artifact goes that was given no folder."""
    name = model.rsplit(":", 1)[-1] if isinstance(model, str) else getattr(model, "model_name", type(model).__name__)
    return Path("out") / re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name.lower()}-{target}-{precision}")
