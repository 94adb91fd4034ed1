"""Algorithms over a prepared model: each a function with a name, a cost and what it needs, found by name.

    Prepared, samples ─▶ Prepared

An algorithm never writes a q/dq node: it changes what placement starts from (the method of ranges, the weights of the
float graph, whether biases are corrected), so that one written once serves every target and precision. Those of other
distributions are entry points of the group `deploykit.algorithms`; a script's own are given to `register`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import TYPE_CHECKING

from deploykit.contract.entry_points import UPDATE, entry_points, loaded, named
from deploykit.contract.errors import CalibrationError, DeploykitError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.capture import CapturedModel
    from deploykit.contract.formats import Format
    from deploykit_calibration.prepared import Prepared

GROUP = "deploykit.algorithms"
_KIND = "algorithm"
STATISTICS, SAMPLES = "statistics", "samples"
ROUNDED, GRID, RANGES = "rounded weights", "weights on a grid", "ranges of activations"
_LACKS = {
    ROUNDED: "no weight is rounded",
    GRID: "its weights are not rounded to evenly spaced values",
    RANGES: "it fixes no range of activations at export",
}

Samples = Sequence[Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes:
        name: the name by which it is asked for.
        run: (prepared, samples) to what is prepared better; samples are feeds by input name. It changes neither.
        cost: in words, what it costs beside a plain export, such as "five placements and runs on samples".
        needs: those of `STATISTICS` (a calibration table) and `SAMPLES` (calibration data itself) that it needs.
        source: the publication that it is after; "" for our own.
        version: the version of its results; one that decides or rounds otherwise has another, and recipes of the old
            one are refused.
        settings: what it runs with, for the recipe.
        is_choice: all that it changes is what a recipe records (the method of ranges, that of single tensors, layers
            kept in float), so that following the recipe runs it no more.
        rounds: weights leave it as they will be rounded: what rescales them comes before it.
        decides: names of what it finds from the data and puts into `Prepared.decided`, for the recipe; what stands
            there already it takes as found.
        acts_on: what a precision must have, or it changes nothing there and is refused: all of `ROUNDED`, `GRID` and
            `RANGES` that are named. Nothing for one that acts in every precision.
    """

    name: str
    run: Callable[[Prepared, Samples], Prepared]
    cost: str
    needs: frozenset[str] = field(default_factory=frozenset)
    source: str = ""
    version: str = "1"
    settings: Mapping[str, object] = field(default_factory=dict)
    is_choice: bool = False
    rounds: bool = False
    decides: frozenset[str] = field(default_factory=frozenset)
    acts_on: frozenset[str] = field(default_factory=frozenset)

    def without_effect(self, row: Format) -> str:
        """Why it changes nothing in a precision, in words; "" where it acts."""
        have = {
            ROUNDED: not row.is_whole,
            GRID: not (row.is_whole or row.weights.is_float or row.weights.is_palette),
            RANGES: row.is_static,
        }
        return next((_LACKS[each] for each in sorted(self.acts_on) if not have[each]), "")


def algorithm(name: str) -> Algorithm:
    """Find an algorithm.

    Raises:
        UsageError: there is none of that name; the hint lists those there are.
        DeploykitError: it is registered and cannot be loaded, or is registered twice.
    """
    own = _own()
    if name in own:
        return own[name]
    entries = entry_points(GROUP, _KIND)
    if name not in entries:
        raise UsageError(f"there is no algorithm {name!r}", hint=f"one of {', '.join(sorted({*own, *entries}))}")
    found = loaded(entries[name], _KIND)
    if not isinstance(found, Algorithm):
        raise DeploykitError(f"{named(entries[name], _KIND)} is no Algorithm", hint=UPDATE)
    return found


def registered_algorithms() -> tuple[Algorithm, ...]:
    """All that are found by name, in an order in which they may follow each other: those that round come last.

    One of another distribution that cannot be loaded is left out.
    """
    found = []
    for name in sorted({*_own(), *entry_points(GROUP, _KIND)}):
        with contextlib.suppress(DeploykitError):
            found.append(algorithm(name))
    return tuple(sorted(found, key=lambda each: (each.rounds, each.name)))


def register(found: Algorithm) -> Algorithm:
    """Make an algorithm of this program known by its name, for as long as the program runs.

    Raises:
        UsageError: another one has that name.
    """
    if _own().get(found.name, found) is not found:
        raise UsageError(f"there is an algorithm {found.name!r} already", hint="give yours another name")
    _registered[found.name] = found
    return found


_registered: dict[str, Algorithm] = {}


def _own() -> dict[str, Algorithm]:
    from deploykit_calibration.algorithms.best import BEST
    from deploykit_calibration.algorithms.bias_correction import BIAS_CORRECTION
    from deploykit_calibration.algorithms.equalize import EQUALIZE, SMOOTH
    from deploykit_calibration.algorithms.gptq import GPTQ

    return {**_registered, **{each.name: each for each in (BIAS_CORRECTION, BEST, EQUALIZE, SMOOTH, GPTQ)}}


def apply(prepared: Prepared, names: Iterable[str], decided: Iterable[Mapping[str, object]] = ()) -> Prepared:
    """Run algorithms one after the other.

    Args:
        decided: for each of them, what it is to take as found; nothing where there are no more.
    Raises:
        UsageError: one does not exist.
        CalibrationError: one needs statistics or samples, and there are none.
    """
    for name, known in zip(names, chain(decided, repeat({})), strict=False):
        found = algorithm(name)
        _check_needs(prepared, found)
        given = replace(prepared, decided=known) if known or prepared.decided else prepared
        made = _run(found, given)
        prepared = replace(
            made,
            applied=(*prepared.applied, name),
            decided={},
            decisions=(*prepared.decisions, made.decided),
            unrounded=_unrounded(found, prepared, made),
        )
    return prepared


def _unrounded(found: Algorithm, before: Prepared, after: Prepared) -> CapturedModel | None:
    """The graph before its weights were rounded; what changes weights otherwise makes another model of it."""
    if after.captured is before.captured:
        return before.unrounded
    return before.exact if found.rounds else None


def _run(found: Algorithm, prepared: Prepared) -> Prepared:
    """Foreign code: what goes wrong in it is said with its name."""
    try:
        made = found.run(prepared, prepared.samples)
    except DeploykitError:
        raise
    except Exception as error:
        raise DeploykitError(f"algorithm {found.name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, type(prepared)):
        raise DeploykitError(f"algorithm {found.name!r} returned {type(made).__name__} in place of a Prepared")
    unnamed = sorted(made.decided.keys() - found.decides)
    if unnamed:
        hint = f"declare it: Algorithm(..., decides=frozenset({{{unnamed[0]!r}}}))"
        raise DeploykitError(f"algorithm {found.name!r} decides {unnamed[0]!r}, which it does not declare", hint=hint)
    return made


def _check_needs(prepared: Prepared, found: Algorithm) -> None:
    if STATISTICS in found.needs and prepared.table is None:
        raise CalibrationError(f"algorithm {found.name!r} needs calibration statistics", hint="pass calibration=")
    if SAMPLES in found.needs and not prepared.samples:
        hint = "pass the data itself as calibration=, not a finished table"
        raise CalibrationError(f"algorithm {found.name!r} needs samples of the calibration data", hint=hint)
