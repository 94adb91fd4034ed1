"""`deploykit export`: the pipeline from the command line."""

from __future__ import annotations

from dataclasses import replace

from deploykit.cli.output import Answer
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


def export(
    model: Model,
    target: Target = None,
    precision: PrecisionName = None,
    calibration: Calibration = None,
    output: Output = None,
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
    evaluate: Evaluate = None,
    max_drop: MaxDrop = None,
    min_placement: MinPlacement = None,
    min_speedup: MinSpeedup = None,
    min_sqnr_db: MinSqnrDb = None,
    min_cosine: MinCosine = None,
    min_top1_agreement: MinTop1Agreement = None,
    cache_dir: CacheDir = None,
    progress: Progress = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Export a model and prove that the export is right.

    The artifact appears only when it is complete; an older one in its place is replaced.
    """
    from deploykit.pipeline.following import PRECISION, TARGET, aimed, opened

    options, shapes = parse_options(option or ()), axes_by_name(dynamic_shapes)
    check_calibration(calibration)
    followed = opened(recipe)
    target, precision = aimed(followed, target or TARGET, precision or PRECISION)
    tolerance = tolerance_from(precision, min_sqnr_db, min_cosine, min_top1_agreement)
    search_current_folder()

    from deploykit.cli.commands.compare import published, shown_path
    from deploykit.pipeline.export import export as run_export

    artifact = run_export(
        model,
        target,
        precision,
        calibration=calibration,
        calibration_method=method,
        dynamic_batch=dynamic_batch,
        dynamic_shapes=shapes,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        options=options or None,
        evaluate=function_of("--evaluate", evaluate),
        max_drop=max_drop,
        tolerance=tolerance,
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
    answer = published(artifact)
    build = artifact.manifest.build
    if build is None:
        return answer
    command = build.command_for(shown_path(artifact))
    page = [*answer.page, f"to finish it on {artifact.manifest.device}: {command}\n  because {build.reason}"]
    return replace(answer, document={**answer.document, "build_command": command}, page=page)
