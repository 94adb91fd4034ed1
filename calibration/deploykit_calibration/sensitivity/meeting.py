"""The cheapest candidate that meets a goal, by few real evaluations: bisection over a front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploykit_calibration.sensitivity.candidates import Candidate

MOST = 4
"""Evaluations: sixteen candidates are told apart."""


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
    at = _start(candidates, goal, predicted)
    while low <= high and len(tried) < most:
        figure = evaluate(candidates[at])
        tried.append(Tried(candidates[at], figure, figure >= goal))
        if tried[-1].meets:
            high = at - 1
        else:
            low = at + 1
        at = _next(low, high, at, meets=tried[-1].meets, first=len(tried) == 1, informed=predicted is not None)
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


def _next(low: int, high: int, at: int, *, meets: bool, first: bool, informed: bool) -> int:
    """The middle of what is left; right behind an informed start, a point near to it, for it will be nearly right."""
    if not first or not informed:
        return (low + high) // 2
    span = max((high - low + 1) // 4, 0)
    return max(high - span, low) if meets else min(low + span, high)
