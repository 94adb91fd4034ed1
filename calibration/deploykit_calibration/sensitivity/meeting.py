"""The cheapest candidate that meets a goal, by few real evaluations over a front.

Predictions are off by much the same for neighbours: each evaluation tells how far, and the next is of the cheapest
candidate that should meet the goal by that. Without predictions it is bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploykit_calibration.sensitivity.candidates import Candidate

MOST = 4
"""Evaluations: sixteen candidates are told apart."""
_OFF_DB = 1.0
"""How far a prediction may be off that was corrected by a neighbour: what is expected to miss by more is not tried."""


@dataclass(frozen=True)
class Tried:
    """One real evaluation."""

    candidate: Candidate
    figure: float
    meets: bool


@dataclass(frozen=True)
class Met:
    """What a bisection found.

    Attributes:
        best: the cheapest candidate that met the goal, else the one with the best figure.
        meets: whether it meets it.
        tried: all evaluations, in their order.
    """

    best: Candidate
    meets: bool
    tried: tuple[Tried, ...]


def meet(
    candidates: Sequence[Candidate],
    evaluate: Callable[[Candidate], float],
    goal: float,
    *,
    predicted: Callable[[Candidate], float] | None = None,
    most: int = MOST,
) -> Met:
    """Find the cheapest candidate whose figure reaches a goal.

    Args:
        candidates: cheapest first, each dearer one expected to be better, as `Sensitivity.front` gives them.
        evaluate: the real figure of a candidate, higher is better; NaN misses.
        goal: least figure.
        predicted: the figure that a candidate is expected to have; the search begins at the first that is expected to
            meet the goal. None begins in the middle.
        most: evaluations at most, at least 1.
    """
    if not candidates:
        raise ValueError("there is no candidate")
    tried: list[Tried] = []
    low, high = 0, len(candidates) - 1  # the cheapest that meets the goal lies between, or nothing does
    at: int | None = _start(candidates, goal, predicted)
    while at is not None and len(tried) < most:
        figure = evaluate(candidates[at])
        tried.append(Tried(candidates[at], figure, figure >= goal))
        if tried[-1].meets:
            high = at - 1
        else:
            low = at + 1
        at = _next(candidates, range(low, high + 1), goal, predicted, tried)
    met = [each for each in tried if each.meets]
    if met:
        return Met(min(met, key=lambda each: each.candidate.cost).candidate, True, tuple(tried))
    best = max(tried, key=lambda each: (each.figure == each.figure, each.figure))
    return Met(best.candidate, False, tuple(tried))


def _start(candidates: Sequence[Candidate], goal: float, predicted: Callable[[Candidate], float] | None) -> int:
    if predicted is None:
        return (len(candidates) - 1) // 2
    expected = (at for at, candidate in enumerate(candidates) if predicted(candidate) >= goal)
    return next(expected, len(candidates) - 1)


def _next(
    candidates: Sequence[Candidate],
    left: range,
    goal: float,
    predicted: Callable[[Candidate], float] | None,
    tried: Sequence[Tried],
) -> int | None:
    """Which of those that are left to try: the middle without predictions; None where it is not worth one."""
    if not left:
        return None
    last = tried[-1]
    if predicted is None or math.isnan(last.figure):
        return left[(len(left) - 1) // 2]
    off = last.figure - predicted(last.candidate)
    expected = {at: predicted(candidates[at]) + off for at in left}
    meeting = [at for at in left if expected[at] >= goal]
    if meeting:
        return meeting[0]
    nearest = max(left, key=lambda at: expected[at])
    is_hopeless = any(each.meets for each in tried) and expected[nearest] < goal - _OFF_DB
    return None if is_hopeless else nearest
