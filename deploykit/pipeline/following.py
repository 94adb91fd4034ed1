"""A recipe in place of arguments: what it names, and the refusal of arguments that say the same thing again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.contract.errors import UnknownTargetError, UsageError
from deploykit.contract.recipe import Recipe
from deploykit.plugin.registry import FASTEST, Resolved, resolve


class Unsaid(str):
    """A default that can be told from the same word said by the user, by its type."""


TARGET, PRECISION = Unsaid("x86-cpu"), Unsaid("int8")
"""What an export is for where nothing is said."""


def opened(recipe: Recipe | str | Path | None) -> Recipe | None:
    """A recipe as values; a path is read.

    Raises:
        UsageError: it is something else, or a file that cannot be read as one; see `Recipe.read`.
    """
    if recipe is None or isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str | Path):
        raise UsageError(
            f"recipe is {recipe!r}", hint="pass a Recipe (plan.recipe, artifact.recipe) or the path of one"
        )
    return Recipe.read(recipe)


def aimed(recipe: Recipe | None, target: str, precision: str) -> tuple[str, str]:
    """Target and precision: as given, else as the recipe says, else the defaults.

    Raises:
        UnknownTargetError: there is no such target.
        UsageError: the recipe is of another target or precision.
    """
    if recipe is None:
        return _said(target), _said(precision)
    if isinstance(target, str) and target.endswith(f":{FASTEST}"):
        hint = f"leave target= to the recipe, or recipe= out: a recipe of {recipe.target} says how that quantises"
        raise UsageError(f"the recipe is of {recipe.target}, and {target} chooses between toolchains", hint=hint)
    target = _shortest(recipe.target) if isinstance(target, Unsaid) else target
    resolved = resolve(target)
    if ":" not in recipe.target:
        hint = f'write target = "{_typed(resolved)}" if that is what it was found for: others quantise otherwise'
        raise UsageError(f"the recipe is of {recipe.target}, and does not say with which toolchain", hint=hint)
    if _typed(resolved) != recipe.target:
        raise UsageError(
            f"the recipe is of {recipe.target}, and {target} is {_typed(resolved)}, which quantises otherwise",
            hint=f'export with target="{recipe.target}", or find a recipe of {target} with deploykit.tune',
        )
    if not isinstance(precision, Unsaid) and precision != recipe.precision:
        raise UsageError(f"the recipe is of {recipe.precision}, not of {precision}", hint="leave precision= to it")
    return target, recipe.precision


def _said(word: str) -> str:
    return str(word) if isinstance(word, Unsaid) else word


def _shortest(target: str) -> str:
    """The device alone where that means the same, as it is mostly typed."""
    device = target.partition(":")[0]
    try:
        return device if _typed(resolve(device)) == target else target
    except UnknownTargetError:  # of a device that several toolchains have
        return target


def _typed(resolved: Resolved) -> str:
    return f"{resolved.device.name}:{resolved.target.name}"


def options_of(recipe: Recipe, resolved: Resolved, given: Any) -> Any:
    """The toolchain's options as a recipe has them.

    Raises:
        UsageError: others are given, or the toolchain has no such option any more.
    """
    try:
        wanted = resolved.target.parse_options(recipe.options)
    except UsageError as error:
        made = f"the recipe has options that {resolved.target.name} does not take ({error.message})"
        hint = f"a recipe is of one toolchain: find one of {resolved.typed} with deploykit.tune, or correct [options]"
        raise UsageError(made, hint=hint) from error
    if given is not None and resolved.target.parse_options(given) != wanted:
        raise UsageError(f"the recipe has the options {recipe.options or 'none'}", hint="leave options= to it")
    return wanted


def check_silent(recipe: Recipe, given: Mapping[str, Sequence[str] | str]) -> None:
    """Refuse arguments that a recipe decides; empty ones and `default` are none.

    Raises:
        UsageError: one was given.
    """
    for name, value in given.items():
        if value and value != "default":
            raise UsageError(
                f"{name}={value!r} beside a recipe, which decides that",
                hint=f"change the recipe ({recipe.precision} of {recipe.target}), or leave {name}= out",
            )
