"""The placement gate: how much of a model must run in the precision that was asked for, and what is said otherwise.

By default at least half of the multiply-accumulates that the request is about. Layers that `exclude=` or `include=`
keep in float are not held against it, and a precision of weights is judged on the layers that have weights. What the
user asks for with `min_placement=` is a share of all multiply-accumulates, without exceptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.precision import Precision

LEAST_PLACED = 0.5
"""What makes an artifact one of its precision: the larger part of its arithmetic. Below, the name would be untrue, and
figures of it (size, speed, accuracy) would be those of the float model."""

_REASONS_SHOWN = 3


@dataclass(frozen=True)
class PlacementMiss:
    """Why too little runs in the precision, and what to do."""

    message: str
    hint: str


def placement_miss(
    precision: Precision, achieved: Achieved, min_placement: float | None, further: Precision | None
) -> PlacementMiss | None:
    """Judge what was counted; None where it will do.

    Args:
        precision: the precision that was asked for.
        min_placement: share of all multiply-accumulates; None for the default of the precision.
        further: a precision of the target that more kinds of layers have, for the hint.
    """
    message = _default(precision, achieved) if min_placement is None else _wanted(precision, achieved, min_placement)
    if message is None:
        return None
    reasons = "; ".join(f"{layer.module_path or layer.name}: {layer.reason}" for layer in _culprits(achieved))
    return PlacementMiss(message + (f" ({reasons})" if reasons else ""), _hint(achieved, further))


def _wanted(precision: Precision, achieved: Achieved, least: float) -> str | None:
    share = achieved.as_asked_fraction
    if not sum(achieved.macs.values()) or share >= least:
        return None
    return f"{share:.1%} of multiply-accumulates run in {precision}; {least:.1%} were asked for"


def _default(precision: Precision, achieved: Achieved) -> str | None:
    if precision is Precision.FP32:
        return None
    if achieved.uncounted:
        operators = ", ".join(sorted({layer.op for layer in achieved.uncounted}))
        return f"how much runs in {precision} is not known: deploykit does not know how often {operators} multiplies"
    if not sum(achieved.macs.values()):
        return None
    if not achieved.as_asked_fraction:
        return f"nothing runs in {precision}: every multiply-accumulate stayed in {_what_else(achieved)}"
    share = achieved.placed_fraction
    if share is None or share >= LEAST_PLACED:
        return None
    concerned = " of layers with weights" if precision.is_weight_only else ""
    return (
        f"{share:.1%} of multiply-accumulates{concerned} run in {precision}; an artifact of that name has at least"
        f" {LEAST_PLACED:.0%}, layers excluded by request aside"
    )


def _what_else(achieved: Achieved) -> str:
    found = sorted(name for name, macs in achieved.macs.items() if macs)
    return " and ".join(found) if found else "float"


def _culprits(achieved: Achieved) -> tuple[LayerAchieved, ...]:
    """The largest layers that nobody asked to keep."""
    rest = [layer for layer in achieved.not_as_requested if not layer.by_request]
    return tuple(rest[:_REASONS_SHOWN])


def _hint(achieved: Achieved, further: Precision | None) -> str:
    other = f'precision="{further}" may have more of its layers; ' if further else ""
    return (
        f"{other}artifact.achieved.not_as_requested has every layer with its reason"
        f"; min_placement={passing(achieved):g} accepts what was placed; strict=False returns the candidate"
    )


def passing(achieved: Achieved) -> float:
    """The largest `min_placement` of three digits that an artifact passes."""
    shares = [achieved.as_asked_fraction, *([achieved.delegation.macs_fraction] if achieved.delegation else [])]
    return math.floor(min(shares) * 1000) / 1000
