"""A recipe as a page: what was decided, which layers it keeps in float, and what was tried on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploykit.cli.tables import grid, pairs
from deploykit.contract.printable import layer_labels
from deploykit.judge import figures

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from deploykit.contract.recipe import Recipe, TriedStep

_LAYERS_SHOWN = 20


def recipe_page(recipe: Recipe) -> Iterator[RenderableType]:
    """The decisions; the layers that the recipe itself keeps in float; the ladder."""
    yield _decisions(recipe)
    labels = layer_labels(recipe.layers)
    chosen = [(label, layer) for label, layer in zip(labels, recipe.layers, strict=True) if layer.chosen]
    if chosen:
        rows = [[label, layer.kind, layer.reason] for label, layer in chosen[:_LAYERS_SHOWN]]
        yield grid("Kept in float by the recipe", ["layer", "operator", "reason"], rows)
    if len(chosen) > _LAYERS_SHOWN:
        yield f"and {figures.plain(len(chosen) - _LAYERS_SHOWN)} more; --json lists them all"
    if recipe.ladder:
        yield ladder_table(recipe.ladder)


def _decisions(recipe: Recipe) -> Table:
    steps = [f"{step.name} {step.version}{_found(step.decided)}" for step in recipe.algorithms]
    rows = [("scheme", recipe.scheme), ("ranges", recipe.method), ("algorithms", ", ".join(steps) or "none")]
    if recipe.ranges:
        rows.append(("ranges of single tensors", ", ".join(f"{each.tensor} {each.method}" for each in recipe.ranges)))
    rows += [
        (name, ", ".join(value)) for name, value in (("include", recipe.include), ("exclude", recipe.exclude)) if value
    ]
    return pairs("Recipe", rows)


def _found(decided: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in decided.items())
    return f" ({told})" if told else ""


def ladder_table(ladder: Sequence[TriedStep]) -> Table:
    """Every step that was tried, in order."""
    rows = [
        [
            step.step,
            step.outcome,
            figures.decibel(step.sqnr_db),
            figures.plain(step.metric),
            drop(step),
            figures.share(step.int8_share),
            step.on or "-",
            step.reason,
        ]
        for step in ladder
    ]
    heads = ["step", "outcome", "SQNR", "metric", "drop", "placed", "measured on", "reason"]
    return grid("Ladder", heads, rows, right=heads[2:6])


def drop(step: TriedStep) -> str:
    """How far the metric fell, with its interval where that is known."""
    if step.drop is None:
        return figures.UNKNOWN
    if step.drop_low is None or step.drop_high is None:
        return figures.plain(step.drop)
    return f"{figures.plain(step.drop)} ({figures.plain(step.drop_low)} to {figures.plain(step.drop_high)})"
