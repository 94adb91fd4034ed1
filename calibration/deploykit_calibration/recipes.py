"""Recipes beside graphs: what of a prepared model a recipe records, and how one is followed on a captured model.

A recipe of another graph is refused with the layers that differ. Of the same graph it is followed line by line: a
layer whose precision was edited to `float` stays float, and one that was edited to what the scheme cannot give it is
refused with the scheme's own reason. Other weights or other data are allowed, and said in a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from deploykit._version import __version__
from deploykit.capture.fingerprint import structure
from deploykit.contract.errors import UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.recipe import (
    FLOAT,
    FLOAT32,
    WIDE,
    AlgorithmStep,
    LayerChoice,
    ModelIdentity,
    RangeChoice,
    Recipe,
)
from deploykit_calibration.algorithms import Algorithm, algorithm
from deploykit_calibration.placement import LayerPlacement, float_graph, plan_layers
from deploykit_calibration.ranges import given_range, parse_method

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.table import CalibrationTable

_SHOWN = 6
_EDITED, _WIDENED = "kept in float by the recipe", "held in 8 bits by the recipe"


def recipe_of(prepared: Prepared) -> Recipe:
    """What was decided for a prepared model.

    Where a recipe was followed to the letter, this is that recipe, with its ladder.
    """
    request, captured, followed = prepared.request, prepared.captured, prepared.request.recipe
    options = {name: value for name, value in msgspec.to_builtins(request.options).items() if value is not None}
    methods = sorted(prepared.methods.items())
    made = Recipe(
        target=f"{request.device.name}:{request.toolchain}",
        precision=request.precision.value,
        scheme=prepared.scheme.name,
        model=ModelIdentity(captured.model_name, structure(captured.graph_module), prepared.reference.fingerprint),
        layers=tuple(_choice(prepared, layer) for layer in prepared.layers),
        method=prepared.method,
        ranges=tuple(RangeChoice(tensor, method) for tensor, method in methods),
        include=request.include,
        exclude=request.exclude,
        algorithms=tuple(_steps(prepared)),
        options=options,
        calibration=prepared.table.data_fingerprint if prepared.table is not None else "",
        deploykit=__version__,
    )
    same = followed is not None and followed.same_decisions(made)
    return replace(made, ladder=followed.ladder) if followed is not None and same else made


def _choice(prepared: Prepared, layer: LayerPlacement) -> LayerChoice:
    is_float = layer.precision == FLOAT
    chosen = layer.name in prepared.wider or (layer.name in prepared.kept and is_float)
    if is_float and layer.name in prepared.in_float32:
        why = layer.reason or prepared.in_float32[layer.name]
        return LayerChoice(layer.name, layer.module_path, layer.kind, FLOAT32, why, chosen=True)
    return LayerChoice(layer.name, layer.module_path, layer.kind, layer.precision, layer.reason, chosen)


def _steps(prepared: Prepared) -> Iterator[AlgorithmStep]:
    for name, decided in zip(prepared.applied, prepared.decisions, strict=True):
        found = algorithm(name)
        if not found.is_choice:
            yield AlgorithmStep(found.name, found.version, dict(found.settings), dict(decided))


def recipe_notes(prepared: Prepared, made: Recipe) -> Iterator[str]:
    """In what an artifact departs from the recipe that it was made with, for its manifest."""
    asked = prepared.request.recipe
    if asked is None or asked.same_decisions(made):
        return
    differs = {
        "it was made for other weights": asked.model.fingerprint != made.model.fingerprint,
        "it was made with other calibration data": asked.calibration != made.calibration,
        f"deploykit {asked.deploykit or 'of an unknown version'} made it": asked.deploykit != made.deploykit,
        f"it is of the scheme {asked.scheme}, and this target has {made.scheme}": asked.scheme != made.scheme,
    }
    said = ", ".join(what for what, is_so in differs.items() if is_so) or "it was edited"
    ladder = "; its ladder is not of this artifact, and is left out" if asked.ladder else ""
    yield f"the recipe is followed, but not to the letter: {said}{ladder}"


def check_recipe(recipe: Recipe, captured: CapturedModel) -> None:
    """Refuse a recipe of another graph, and one with algorithms of another version.

    Args:
        captured: as the target adapted it.
    Raises:
        UsageError: names the layers that differ, or the algorithm.
    """
    have = {layer.name: layer for layer in float_graph_layers(captured)}
    told = {layer.name: layer for layer in recipe.layers}
    missing = [str(layer) for name, layer in told.items() if name not in have]
    new = [_named(layer) for name, layer in have.items() if name not in told]
    changed = [
        f"{told[name]} is now {_named(layer)}"
        for name, layer in have.items()
        if name in told and (told[name].module_path, told[name].kind) != (layer.module_path, layer.kind)
    ]
    parts = (("the model has no more", missing), ("the recipe does not know", new), ("changed", changed))
    said = "; ".join(f"{what}: {_few(names)}" for what, names in parts if names)
    if not said and recipe.model.graph != structure(captured.graph_module):
        said = "the layers have the same names; shapes of weights, or operators between them, differ"
    if said:
        raise UsageError(
            f"the recipe is of another graph ({recipe.model.name}, this is {captured.model_name}): {said}",
            hint="take the recipe of this model, or find one with deploykit.tune",
        )
    for step in recipe.algorithms:
        _check_algorithm(step, algorithm(step.name))


def float_graph_layers(captured: CapturedModel) -> tuple[LayerPlacement, ...]:
    """Every layer of a graph in which nothing is placed."""
    from deploykit.contract.scheme import IN_FLOAT

    return float_graph(captured, IN_FLOAT).layers


def _check_algorithm(step: AlgorithmStep, found: Algorithm) -> None:
    if found.version != step.version:
        raise UsageError(
            f"the recipe was made with version {step.version} of {step.name}, and version {found.version} is here",
            hint="install the deploykit that the recipe names, or find a recipe anew with deploykit.tune",
        )
    here = AlgorithmStep(found.name, found.version, dict(found.settings)).settings
    if here != step.settings:
        raise UsageError(
            f"the recipe has {step.settings} as the settings of {step.name}, which runs with {here}",
            hint="settings are the algorithm's own: register one with those settings under another name",
        )
    unknown = sorted(step.decided.keys() - found.decides)
    if unknown:
        raise UsageError(
            f"the recipe has {unknown[0]!r} as decided by {step.name}, which decides {_few(sorted(found.decides))}",
            hint="leave it out: the algorithm then decides from the data",
        )


def _named(layer: LayerPlacement) -> str:
    return f"{layer.name} ({layer.kind} of {layer.module_path or 'the root module'})"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def kept_layers(
    request: Request, captured: CapturedModel, scheme: Scheme, table: CalibrationTable | None
) -> tuple[dict[str, str], dict[str, str]]:
    """What a recipe decides for single layers, by node name, and why: as it says, and as it was edited to say.

    Returns:
        The layers that it keeps in float, and those whose weight it holds in 8 bits where others have fewer.
    Raises:
        UsageError: the recipe wants a layer in what the scheme cannot give it, or the precision has no layers to keep.
    """
    recipe = request.recipe
    assert recipe is not None
    kept, wider = recipe.kept, recipe.wider
    _check_float32(request, recipe)
    if request.precision is Precision.FP16:
        kept = {name: why for name, why in kept.items() if name not in recipe.in_float32}
    if not scheme.quantizes or (scheme.is_static and table is None):
        if kept or wider:
            raise UsageError(
                f"the recipe keeps {len({*kept, *wider})} layers apart, and {request.precision} of {recipe.target} has"
                " none to choose",
                hint="use exclude=",
            )
        for other in recipe.layers if not scheme.quantizes else ():
            if other.precision not in (FLOAT, FLOAT32):
                _refuse(other, f"a layer of {request.precision} is {FLOAT} or {FLOAT32}")
        return {}, {}
    is_narrow = request.precision.row.weights.bits < 8
    told = {layer.name: layer for layer in recipe.layers}
    planned = partial(plan_layers, captured, table, scheme, include=request.include, exclude=request.exclude)
    for layer in planned(kept=kept, wider=wider):
        wanted = told[layer.name]
        if layer.precision != FLOAT and wanted.precision in (FLOAT, FLOAT32):
            kept[layer.name] = wanted.reason or _EDITED
            wider.pop(layer.name, None)
        elif layer.precision not in (FLOAT, wanted.precision) and wanted.precision == WIDE and is_narrow:
            wider[layer.name] = wanted.reason or _WIDENED
        elif layer.precision not in (FLOAT, wanted.precision):
            _refuse(wanted, f"a layer of {request.precision} is {layer.precision}, {FLOAT} or {FLOAT32}")
    plain = {layer.name: layer for layer in planned(wider=wider)}
    for wanted in recipe.layers:
        if wanted.precision not in (FLOAT, FLOAT32) and plain[wanted.name].precision == FLOAT:
            _refuse(wanted, plain[wanted.name].reason)
    return kept, wider


def _check_float32(request: Request, recipe: Recipe) -> None:
    if recipe.in_float32 and request.precision.row.rest == "bfloat16":
        layer = next(each for each in recipe.layers if each.precision == FLOAT32)
        _refuse(layer, f"{request.precision} is bfloat16 throughout")


def _refuse(layer: LayerChoice, why: str) -> None:
    hint = f'write precision = "{FLOAT}" for it, or take another precision or target'
    raise UsageError(f"the recipe wants {layer} in {layer.precision}, which it cannot have: {why}", hint=hint)


def checked_methods(recipe: Recipe, table: CalibrationTable | None) -> dict[str, str]:
    """The range method of single tensors.

    Raises:
        UsageError: no such method, or nothing is known of the tensor.
    """
    for each in recipe.ranges:
        if given_range(each.method) is None:
            parse_method(each.method)
        if table is not None and each.tensor not in table.statistics:
            raise UsageError(
                f"the recipe has a range for {each.tensor}, and calibration saw no tensor of that name",
                hint="ranges are of nodes of the captured graph, such as those that `layers` names",
            )
    return recipe.methods
