"""How many channels of which group are removed, and which."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from deploykit.contract.errors import UsageError
from deploykit_calibration.patterns import matches
from deploykit_training.pruning.groups import Group, layers_of

SCOPES = ("layer", "global", "sensitivity")
_LEAST_KEPT = 0.125  # of a group's channels, however little they are worth: a layer of one channel stops a gradient
_LEVELS = (0.25, 0.5, 0.75)

Ratio = float | Mapping[str, float]
Errors = Callable[["Choice"], float]


@dataclass(frozen=True)
class Choice:
    """Channels of a group's root that shall go."""

    group: Group
    index: tuple[int, ...]


def check_ratio(ratio: Ratio) -> None:
    """Refuse a ratio that is none.

    Raises:
        UsageError: it is not above 0 and below 1, or a mapping has none.
    """
    values = list(ratio.values()) if isinstance(ratio, Mapping) else [ratio]
    wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float) or not 0.0 < v < 1.0]
    if wrong or not values:
        raise UsageError(
            f"ratio is a share above 0 and below 1, not {wrong[0] if wrong else ratio!r}", hint="ratio=0.5"
        )


def ratios(groups: Sequence[Group], ratio: Ratio, exclude: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """The ratio of every group by its root, and why others stay.

    Raises:
        UsageError: a pattern names no layer whose channels can be removed.
    """
    wanted = dict(ratio) if isinstance(ratio, Mapping) else {"*": float(ratio)}
    for pattern in (*wanted, *exclude):
        if not any(matches(pattern, path, path) for path in layers_of(groups)):
            names = ", ".join(sorted(set(layers_of(groups)))[:8]) or "none"
            raise UsageError(f"pattern {pattern!r} names no layer with channels", hint=f"layers: {names}")
    found, kept = {}, {}
    for group in groups:
        excluded = next((p for p in exclude if any(matches(p, path, path) for path in group.producers)), None)
        own = [v for p, v in wanted.items() if any(matches(p, path, path) for path in group.producers)]
        if group.refused or excluded is not None or not own:
            kept[group.root] = group.refused or (
                "no ratio names it" if not own else f"excluded by pattern {excluded!r}"
            )
        else:
            found[group.root] = min(own)
    return found, kept


def choose(
    groups: Sequence[Group],
    wanted: Mapping[str, float],
    energy: Mapping[str, Tensor],
    *,
    scope: str = "layer",
    round_to: int = 1,
    error: Errors | None = None,
) -> tuple[list[Choice], dict[str, str]]:
    """Choose the channels that are worth least.

    Args:
        wanted: share of the units to remove, by root.
        energy: the energy of `channel_energy`.
        scope: `layer`: each group loses its ratio. `global`: all groups together lose the mean ratio, those channels
            that are worth least wherever they are. `sensitivity`: the same number, and each group so many that its
            removal alone errs as much as the others' does.
        round_to: the channels that stay in a group are a multiple of it; rounding removes fewer, never more.
        error: for `sensitivity`: relative error of the outputs with a choice masked.
    Returns:
        Choices, and why other groups stay.
    """
    taking = [group for group in groups if group.root in wanted]
    if scope == "global":
        share = _global(taking, wanted, energy)
    elif scope == "sensitivity" and error is not None:
        share = _sensitive(taking, wanted, energy, error)
    else:
        share = dict(wanted)
    choices, kept = [], {}
    for group in taking:
        count = _removed(group, share[group.root], round_to)
        if count:
            choices.append(Choice(group, _least(group, energy[group.root], count)))
        else:
            kept[group.root] = f"of {group.channels} channels none can go in multiples of {round_to}"
    return choices, kept


def _removed(group: Group, share: float, round_to: int) -> int:
    """How many units go, so that what stays is rounded up."""
    units = len(group.units)
    size = max(len(unit) for unit in group.units)
    step = max(round_to // math.gcd(round_to, size), 1)
    stay = max(math.ceil(round(units * (1.0 - share), 6)), 1)
    return max(units - math.ceil(stay / step) * step, 0)


def _worth(group: Group, energy: Tensor) -> list[float]:
    return [float(energy[list(unit)].sum()) for unit in group.units]


def _least(group: Group, energy: Tensor, count: int) -> tuple[int, ...]:
    worth = _worth(group, energy)
    order = sorted(range(len(worth)), key=lambda at: (worth[at], at))
    return tuple(sorted(channel for at in order[:count] for channel in group.units[at]))


def _total(groups: Sequence[Group], wanted: Mapping[str, float]) -> float:
    return sum(len(group.units) * wanted[group.root] for group in groups)


def _global(groups: Sequence[Group], wanted: Mapping[str, float], energy: Mapping[str, Tensor]) -> dict[str, float]:
    ranked = sorted((worth, group.root) for group in groups for worth in _worth(group, energy[group.root]))
    left = {group.root: math.floor(len(group.units) * (1 - _LEAST_KEPT)) for group in groups}
    taken, pending = dict.fromkeys(left, 0), round(_total(groups, wanted))
    for _, root in ranked:
        if pending and taken[root] < left[root]:
            taken[root], pending = taken[root] + 1, pending - 1
    return {group.root: taken[group.root] / len(group.units) for group in groups}


def _sensitive(
    groups: Sequence[Group], wanted: Mapping[str, float], energy: Mapping[str, Tensor], error: Errors
) -> dict[str, float]:
    curves = {group.root: _curve(group, energy[group.root], error) for group in groups}
    total = _total(groups, wanted)

    def shares(limit: float) -> dict[str, float]:
        return {root: _share_at(curve, limit) for root, curve in curves.items()}

    low, high = -12.0, 3.0  # log10 of the relative error
    for _ in range(40):
        middle = (low + high) / 2
        found = shares(10.0**middle)
        low, high = (low, middle) if sum(len(g.units) * found[g.root] for g in groups) > total else (middle, high)
    return shares(10.0**low)


def _curve(group: Group, energy: Tensor, error: Errors) -> list[tuple[float, float]]:
    """(share, relative error), both rising."""
    points, worst = [(0.0, 0.0)], 0.0
    for level in _LEVELS:
        count = min(round(len(group.units) * level), len(group.units) - 1)
        worst = max(worst, error(Choice(group, _least(group, energy, count))) if count else 0.0)
        points.append((level, worst))
    return points


def _share_at(curve: Sequence[tuple[float, float]], limit: float) -> float:
    """The largest share whose error stays below the limit, on straight lines between the measured points."""
    share = 0.0
    for (s0, e0), (s1, e1) in pairwise(curve):
        if e1 <= limit:
            share = s1
            continue
        return s0 + (s1 - s0) * (limit - e0) / (e1 - e0) if limit > e0 else share
    return share
