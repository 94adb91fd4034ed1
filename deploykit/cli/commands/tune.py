"""`deploykit tune`: the search for the best model that passes its gates, from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import (
    Algorithms,
    CacheDir,
    Calibration,
    Debug,
    DynamicBatch,
    DynamicShapes,
    Evaluate,
    Exclude,
    FollowedRecipe,
    Include,
    Json,
    MaxDrop,
    Method,
    MinCosine,
    MinPlacement,
    MinSpeedup,
    MinSqnrDb,
    MinTop1Agreement,
    Model,
    NoProfile,
    NoStrict,
    Options,
    Output,
    PrecisionName,
    Progress,
    Target,
    axes_by_name,
    check_calibration,
    function_of,
    listener,
    parse_options,
    search_current_folder,
    tolerance_from,
)
from deploykit.contract.errors import GateError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.contract.recipe import Recipe
    from deploykit_tuning.ladder import TunePlan


def tune(
    model: Model,
    target: Target = None,
    precision: PrecisionName = None,
    calibration: Calibration = None,
    output: Output = None,
    evaluate: Evaluate = None,
    max_drop: MaxDrop = None,
    min_sqnr_db: MinSqnrDb = None,
    min_cosine: MinCosine = None,
    min_top1_agreement: MinTop1Agreement = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Try: ptq, rounding, mixed, train; repeatable.  [default: all]"),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="PACKAGE.MODULE:FUNCTION", help="Your training: fn(model) trains it in place."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget-s", metavar="SECONDS", help="Begin no further step after these.")
    ] = None,
    save_recipe: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the recipe of the best model here.")
    ] = None,
    method: Method = "default",
    include: Include = None,
    exclude: Exclude = None,
    algorithm: Algorithms = None,
    recipe: FollowedRecipe = None,
    option: Options = None,
    dynamic_batch: DynamicBatch = False,
    dynamic_shapes: DynamicShapes = None,
    no_profile: NoProfile = False,
    no_strict: NoStrict = False,
    min_placement: MinPlacement = None,
    min_speedup: MinSpeedup = None,
    cache_dir: CacheDir = None,
    progress: Progress = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Find the best model that passes its gates: better ranges, better rounding, mixed precision, training.

    A search that was killed goes on where it was when the command is given again.
    """
    from deploykit.contract.recipe_file import check_writable
    from deploykit.pipeline.following import PRECISION, TARGET, aimed, opened

    options, shapes = parse_options(option or ()), axes_by_name(dynamic_shapes)
    check_calibration(calibration)
    if save_recipe is not None:
        check_writable(Path(save_recipe))
    followed = opened(recipe)
    target, precision = aimed(followed, target or TARGET, precision or PRECISION)
    search_current_folder()

    from deploykit_tuning.rungs import NAMES
    from deploykit_tuning.tuning import tune as search

    try:
        plan = search(
            model,
            target,
            precision,
            calibration=calibration,
            calibration_method=method,
            evaluate=function_of("--evaluate", evaluate),
            max_drop=max_drop,
            tolerance=tolerance_from(precision, min_sqnr_db, min_cosine, min_top1_agreement),
            allow=tuple(NAMES if allow is None else allow),
            train=function_of("--train", train),
            budget_s=budget,
            dynamic_batch=dynamic_batch,
            dynamic_shapes=shapes,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            options=options or None,
            min_placement=min_placement,
            min_speedup=min_speedup,
            profile=not no_profile,
            strict=not no_strict,
            output=output,
            cache_dir=cache_dir,
            progress=listener(progress),
            algorithms=tuple(algorithm or ()),
            recipe=followed,
        )
    except GateError as error:
        if save_recipe is not None and error.candidate is not None and error.candidate.recipe is not None:
            _keep_nearest(error.candidate.recipe, save_recipe)
        raise
    if save_recipe is not None:
        plan.recipe.write(save_recipe)
    return Answer(plan.to_dict(), list(_page(plan, save_recipe)))


def _keep_nearest(recipe: Recipe, path: str) -> None:
    """Write the recipe beside a miss; a file that cannot be written is said, and the miss is what is raised."""
    try:
        recipe.write(path)
        note(f"the recipe of the nearest model is in {path}")
    except UsageError as error:
        note(f"the recipe of the nearest model was not written: {error.message}")


def _page(plan: TunePlan, saved: str | None) -> Iterator[RenderableType]:
    from deploykit.cli.commands.compare import published

    yield search_table(plan.ladder)
    yield from published(plan.best).page
    if saved is not None:
        yield f"recipe: {saved}"


def search_table(ladder: Sequence[Any]) -> RenderableType:
    """Every step with what it took."""
    from deploykit.cli.recipes import drop
    from deploykit.cli.tables import grid
    from deploykit.judge import figures

    heads = ["step", "outcome", "SQNR", "metric", "drop", "placed", "latency", "seconds", "reason"]
    rows = [
        [
            step.step,
            step.outcome,
            figures.decibel(step.sqnr_db),
            figures.plain(step.metric),
            drop(step),
            figures.share(step.int8_share),
            figures.milliseconds(step.measured_cost),
            f"{step.seconds:.1f}",
            step.reason,
        ]
        for step in ladder
    ]
    return grid("Ladder", heads, rows, right=heads[2:8])
