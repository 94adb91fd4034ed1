"""What a precision has no use for: patterns where no layer is quantised, a choice of ranges where none is fixed.

An argument without effect is refused by name (`refuse_unused`), because whoever gave it believes that it acts. Where
one set of arguments is for several precisions (a cell of a release, `precision="auto"`), each gets what it uses
(`used_of_each`), and what none of them uses is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploykit.contract.errors import UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.request import precisions_of_options
from deploykit.plugin.target import Target
from deploykit_calibration.algorithms import algorithm

METHOD, OPTIONS, ALGORITHMS = "calibration_method", "options", "algorithms"
_PATTERNS = ("include", "exclude")
ARGUMENTS = (*_PATTERNS, METHOD, ALGORITHMS, OPTIONS)
"""The names of all arguments that a precision may have no use for."""


@dataclass(frozen=True)
class Unused:
    """An argument, or one item of it, that changes nothing.

    Attributes:
        name: the argument.
        item: the algorithm or option, where only that has no effect; "" for the whole argument.
        shown: as the user wrote it.
        why, hint: the reason, and what to do.
    """

    name: str
    item: str
    shown: str
    why: str
    hint: str

    @property
    def key(self) -> tuple[str, str]:
        """What it is, whatever the precision."""
        return self.name, self.item


def refuse_unused(target: Target, precision: Precision, given: Mapping[str, Any]) -> None:
    """Refuse arguments that change nothing in a precision.

    Args:
        given: `include`, `exclude`, `calibration_method`, `algorithms` and `options` by name, as `deploykit.export`
            takes them; others are left alone.
    Raises:
        UsageError: names the first of them, why it has no effect, and what to do.
    """
    for each in unused(target, precision, given):
        raise UsageError(f"{each.shown} has no effect in {precision}: {each.why}", hint=each.hint)


def used_of_each(wanted: Sequence[tuple[Target, Precision]], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arguments as each of several exports that share them uses them.

    What none of them uses stays in all, so that it is refused and not lost.

    Args:
        wanted: toolchain and precision of each export.
        given: the arguments by name; of others than `ARGUMENTS` nothing is said.
    Returns:
        The arguments of `ARGUMENTS` that were given, for each export.
    """
    given = {name: given[name] for name in ARGUMENTS if name in given}
    lacks = [{each.key for each in unused(target, precision, given)} for target, precision in wanted]
    of_none = set.intersection(*lacks) if lacks else set()
    return [_without(given, missing - of_none) for missing in lacks]


def unused(target: Target, precision: Precision, given: Mapping[str, Any]) -> Iterator[Unused]:
    """Each argument, algorithm or option that changes nothing; arguments as those of `refuse_unused`."""
    row = precision.row
    for name in _PATTERNS if row.is_whole else ():
        if given.get(name):
            why = "no layer of it is quantised, so none can be left out"
            hint = f"leave {name}= out, or choose a precision that quantises layers, such as {_quantising(target)}"
            yield Unused(name, "", f"{name}={list(given[name])!r}", why, hint)
    method = given.get(METHOD, "default")
    if method != "default" and not row.is_static:
        hint = f"leave {METHOD}= out, or choose a precision with calibrated ranges, such as int8"
        yield Unused(METHOD, "", f"{METHOD}={method!r}", "it fixes no range of activations at export", hint)
    for name in given.get(ALGORITHMS, ()):
        why = algorithm(name).without_effect(row)
        if why:
            yield Unused(ALGORITHMS, name, f"{ALGORITHMS}={[name]!r}", why, f"leave {name} out of {ALGORITHMS}=")
    yield from _unused_options(target, precision, given.get(OPTIONS))


def _unused_options(target: Target, precision: Precision, given: Any) -> Iterator[Unused]:
    """Options of other precisions that say something else than where nothing is said."""
    parsed = target.parse_options(given)
    for name, precisions in precisions_of_options(type(parsed)).items():
        value = getattr(parsed, name)
        if precision not in precisions and value != getattr(type(parsed), name):
            why = f"it is an option of {', '.join(sorted(precisions))}"
            yield Unused(OPTIONS, name, f"{OPTIONS}={ {name: value}!r}", why, f"leave {name} out of {OPTIONS}=")


def _without(given: Mapping[str, Any], missing: set[tuple[str, str]]) -> dict[str, Any]:
    """The arguments less what is missing, by its key."""
    found = dict(given)
    for name, item in missing:
        if name == ALGORITHMS:
            found[name] = tuple(each for each in found[name] if each != item)
        elif name == OPTIONS:
            found[name] = _without_option(found[name], item)
        else:
            found[name] = "default" if name == METHOD else ()
    return found


def _without_option(options: Any, name: str) -> Any:
    if isinstance(options, Mapping):
        return {key: value for key, value in options.items() if key != name}
    return replace(options, **{name: getattr(type(options), name)})


def _quantising(target: Target) -> str:
    """A precision of the target in which patterns act."""
    return next((p.value for p in target.capabilities().precisions if not p.row.is_whole), Precision.INT8.value)
