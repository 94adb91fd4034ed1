"""`deploykit sensitivity`: which layers make the noise of a quantised model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import (
    Algorithms,
    CacheDir,
    Calibration,
    Debug,
    DynamicBatch,
    DynamicShapes,
    Exclude,
    FollowedRecipe,
    Include,
    Json,
    Method,
    Model,
    Options,
    PrecisionName,
    Progress,
    Target,
    axes_by_name,
    check_calibration,
    listener,
    parse_options,
    search_current_folder,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit_calibration.sensitivity import Candidate, Sensitivity


def sensitivity(
    model: Model,
    target: Target = None,
    precision: PrecisionName = None,
    calibration: Calibration = None,
    method: Method = "default",
    include: Include = None,
    exclude: Exclude = None,
    algorithm: Algorithms = None,
    recipe: FollowedRecipe = None,
    option: Options = None,
    dynamic_batch: DynamicBatch = False,
    dynamic_shapes: DynamicShapes = None,
    rest: Annotated[
        str, typer.Option(help="What a kept layer becomes: int8-weights with int4-weight-only; float if not given.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="Layers and candidates shown on the page; --json has all.")] = 20,
    cache_dir: CacheDir = None,
    progress: Progress = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Rank a model's layers by what their rounding does to its outputs, and show what keeping some in float would buy.

    Nothing is exported. SQNR is predicted from gradients; costs are of the device table, and no latency.
    """
    options, shapes = parse_options(option or ()), axes_by_name(dynamic_shapes)
    check_calibration(calibration)
    search_current_folder()

    from deploykit.pipeline.following import PRECISION, TARGET, aimed, opened
    from deploykit_tuning.sensitivity import sensitivity as rank

    followed = opened(recipe)
    target, precision = aimed(followed, target or TARGET, precision or PRECISION)
    found = rank(
        model,
        target,
        calibration,
        precision=precision,
        calibration_method=method,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        options=options or None,
        dynamic_batch=dynamic_batch,
        dynamic_shapes=shapes,
        cache_dir=cache_dir,
        progress=listener(progress),
        algorithms=tuple(algorithm or ()),
        recipe=followed,
        rest=rest,
    )
    return Answer({"target": target, "precision": precision, **found.to_dict()}, _page(found, top))


def _page(found: Sensitivity, top: int) -> Sequence[RenderableType]:
    from deploykit.cli.tables import grid
    from deploykit.contract.printable import layer_labels

    layers = grid(
        f"{found.sqnr_db:.1f} dB, simulated on {found.samples} sample(s)",
        ("layer", "kind", "share of noise", "gain dB", f"cost ({found.costs.unit})", "alone", "gradient"),
        (
            (
                label,
                each.kind,
                f"{each.share:.1%}",
                f"{each.gain_db:.2f}",
                f"{each.cost:.3g}",
                f"{each.alone:.1%}",
                f"{each.gradient:.1%}",
            )
            for label, each in list(zip(layer_labels(found.layers), found.layers, strict=True))[:top]
        ),
        right=("share of noise", "gain dB", f"cost ({found.costs.unit})", "alone", "gradient"),
    )
    candidates = grid(
        f"layers kept in {found.costs.rest}, predicted",
        ("kept", "SQNR dB", f"cost ({found.costs.unit})", "quantised MACs"),
        (
            (str(len(each.kept)), f"{each.sqnr_db:.1f}", f"{each.cost:.4g}", f"{each.quantized_share:.1%}")
            for each in _thinned(found.front(), top)
        ),
        right=("kept", "SQNR dB", f"cost ({found.costs.unit})", "quantised MACs"),
    )
    left = len(found.layers) - top
    return [layers, *([f"and {left} more layers: --json has all"] if left > 0 else []), candidates]


def _thinned(candidates: Sequence[Candidate], most: int) -> Sequence[Candidate]:
    """Evenly spaced ones of a long front, both ends among them."""
    if len(candidates) <= most:
        return candidates
    step = (len(candidates) - 1) / max(most - 1, 1)
    return [candidates[round(at * step)] for at in range(most)]
