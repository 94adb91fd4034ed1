"""`plan`: what a release has to do, found out without PyTorch or Ray: cells, keys, what is stored, what is missing.

What the file says wrongly is refused here, with its line. A cell that cannot be made here (a target without the
precision, a toolchain that is not installed) is told here, too: failed, or skipped where the file allows that.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from deploykit.contract.errors import (
    DeploykitError,
    MissingDependencyError,
    UnknownTargetError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.contract.precision import Precision
from deploykit.contract.recipe import Recipe
from deploykit.contract.request import Request
from deploykit.pipeline.plan import make_request, needs_data
from deploykit.pipeline.unused import used_of_each
from deploykit.plugin.registry import Resolved, resolve
from deploykit.plugin.target import Target
from deploykit_calibration.algorithms import algorithm
from deploykit_fleet import release_file
from deploykit_fleet.keys import ModelKeys, cell_key, digest, machine, model_keys
from deploykit_fleet.outcome import Failure
from deploykit_fleet.release_file import CellSpec, ReleaseFile
from deploykit_fleet.store import Finished, Store

CACHED, MISSING, REFUSED, SKIPPED = "cached", "missing", "refused", "skipped"


@dataclass(frozen=True)
class PlannedCell:
    """One cell, and what is known of it before anything runs.

    Attributes:
        spec: as the file asks for it.
        key: of its artifact; for what cannot be made, of the request alone.
        state: `cached`, `missing`, `refused` (it cannot be made here) or `skipped`.
        finished: the stored cell where it is cached.
        failure: why it is refused or skipped.
        needs_data: whether calibration decides anything of it.
    """

    spec: CellSpec
    key: str
    state: str
    finished: Finished | None = None
    failure: Failure | None = None
    needs_data: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a release before it runs.

    Attributes:
        file: the release file.
        folders: that modules of the user are looked for in, first of all.
        models: keys of the models that cells use, by name.
        cells: in the order of the file.
        store: where artifacts are kept.
    """

    file: ReleaseFile
    folders: tuple[Path, ...]
    models: dict[str, ModelKeys]
    cells: tuple[PlannedCell, ...]
    store: Store

    def of(self, state: str) -> list[PlannedCell]:
        """The cells in one state."""
        return [cell for cell in self.cells if cell.state == state]


def plan(where: str | Path) -> Plan:
    """Read a release file and compare it with its store; writes nothing.

    Raises:
        UsageError: the file is wrong; the message says the line.
    """
    file = release_file.read(where)
    folders = tuple(dict.fromkeys((file.folder, Path(os.getcwd()))))
    used = dict.fromkeys(cell.model for cell in file.cells)
    models = {name: model_keys(file, name, folders) for name in used}
    store = Store(file.store)
    cells = tuple(_planned(file, models, store))
    return Plan(file, folders, models, cells, store)


def _planned(file: ReleaseFile, models: dict[str, ModelKeys], store: Store) -> Iterator[PlannedCell]:
    recipes: dict[str, Recipe] = {}
    for spec, resolved in _used(file):
        try:
            request = _request(file, spec, recipes)
            resolved.target.check_installed(export=True)
        except (UnsupportedPrecisionError, MissingDependencyError) as error:
            yield _impossible(spec, error)
            continue
        key = cell_key(spec, models[spec.model], request, resolved.target)
        found = store.finished(key)
        state = MISSING if found is None else CACHED
        yield PlannedCell(spec, key, state, finished=found, needs_data=needs_data(request))


def _used(file: ReleaseFile) -> Iterator[tuple[CellSpec, Resolved]]:
    """Every cell, with that of the arguments of its `[[cell]]` which its precision uses, and its target.

    One `[[cell]]` is for several precisions: patterns of an int8 artifact are none of the float one beside it. What no
    cell of it uses stays, so that it is refused.
    """
    cells = [(spec, _resolved(file, spec)) for spec in file.cells]
    for _, group in itertools.groupby(cells, key=lambda cell: cell[0].number):
        block = list(group)
        wanted = [_wanted(spec, resolved) for spec, resolved in block]
        given = msgspec.structs.asdict(block[0][0].block)
        used = iter(used_of_each([each for each in wanted if each is not None], given))
        for (spec, resolved), each in zip(block, wanted, strict=True):
            own = spec.block if each is None else msgspec.structs.replace(spec.block, **next(used))
            yield replace(spec, block=own), resolved


def _wanted(spec: CellSpec, resolved: Resolved) -> tuple[Target, Precision] | None:
    """Toolchain and precision of a cell; None where something in it is wrong, which is said later, with its line."""
    try:
        precision = Precision(spec.precision)
        resolved.target.check_precision(precision, resolved.device)
        resolved.target.parse_options(dict(spec.block.options))
        for name in spec.block.algorithms:
            algorithm(name)
    except (ValueError, DeploykitError):
        return None
    return resolved.target, precision


def _resolved(file: ReleaseFile, spec: CellSpec) -> Resolved:
    at = ("cell", spec.number, "targets")
    if spec.target.endswith(":fastest"):
        hint = "name the toolchain that `deploykit export` found the fastest"
        raise file.refusal(at, f"{spec.target!r} is found by measuring, and a release has names", hint=hint)
    try:
        return resolve(spec.target)
    except UnknownTargetError as error:
        raise file.refusal(at, error.message, hint=error.hint) from error


def _request(file: ReleaseFile, spec: CellSpec, recipes: dict[str, Recipe]) -> Request:
    """What the artifact of a cell shall be.

    Raises:
        UnsupportedPrecisionError: the target, or its silicon, has no such precision.
        UsageError: something in the file is wrong; the message says the line.
    """
    block, at = spec.block, ("cell", spec.number)
    if spec.precision == "auto":
        hint = "name the precision that `deploykit export --precision auto` chose"
        raise file.refusal((*at, "precisions"), "precision 'auto' is found by measuring", hint=hint)
    if block.recipe and block.recipe not in recipes:
        try:
            recipes[block.recipe] = Recipe.read(file.folder / block.recipe)
        except UsageError as error:
            raise file.refusal((*at, "recipe"), error.message, hint=error.hint) from error
    try:
        return make_request(
            spec.target,
            spec.precision,
            method=block.calibration_method,
            include=block.include,
            exclude=block.exclude,
            options=dict(block.options) or None,
            algorithms=block.algorithms,
            recipe=recipes.get(block.recipe),
        )
    except UsageError as error:
        raise file.refusal((*at, _culprit(error, spec)), error.message, hint=error.hint) from error


def _culprit(error: UsageError, spec: CellSpec) -> str:
    """The key of a `[[cell]]` that a refusal is about, as far as its words tell."""
    named = (
        ("precisions", f"precision {spec.precision!r}"),
        ("calibration_method", "calibration_method"),
        ("include", "include="),
        ("exclude", "exclude="),
        ("recipe", "recipe"),
        ("options", "option"),
        ("algorithms", "algorithm"),
    )
    return next((key for key, words in named if words in error.message), "targets")


_SKIPS: Sequence[tuple[type[DeploykitError], str]] = (
    (UnsupportedPrecisionError, "unsupported"),
    (MissingDependencyError, "missing"),
)


def _impossible(spec: CellSpec, error: DeploykitError) -> PlannedCell:
    reason = next(name for kind, name in _SKIPS if isinstance(error, kind))
    allowed = reason in spec.block.allow_skip
    hint = error.hint if allowed else _or_allow(error.hint, reason)
    failure = Failure(kind=type(error).__name__, message=error.message, hint=hint, exit_code=error.exit_code)
    key = digest(["impossible", spec.name, machine()])
    return PlannedCell(spec, key, SKIPPED if allowed else REFUSED, failure=failure)


def _or_allow(hint: str | None, reason: str) -> str:
    allow = f'allow_skip = ["{reason}"] in its [[cell]] makes it no failure'
    return f"{hint}; {allow}" if hint else allow
