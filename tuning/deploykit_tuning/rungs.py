"""The rungs: what may be tried for a model, in the order of its cost. Each proposes recipes and measures none itself.

    ptq        the plain export; then the choices of ranges that are registered as algorithms
    rounding   registered algorithms that change weights or biases, one on top of the other
    mixed      some layers wider or in float, found by sensitivity; few real evaluations
    train      the user's own training, on the placed graph

Algorithms are taken from the registry by what they say of themselves: what they need, and whether all that they
change is a choice that a recipe records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from deploykit.contract.errors import DeploykitError
from deploykit.contract.recipe import FLOAT, WIDE, AlgorithmStep, Recipe
from deploykit.pipeline.placement import LEAST_PLACED
from deploykit_tuning.climb import Candidate as Point
from deploykit_tuning.climb import Climb

if TYPE_CHECKING:
    from deploykit_calibration.algorithms import Algorithm
    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.sensitivity import Candidate, Met, Sensitivity

Rung = tuple[str, Callable[[Climb], None]]
NAMES = ("ptq", "rounding", "mixed", "train")
EVALUATIONS = 4
"""Real evaluations of mixed precision: sixteen candidates are told apart."""
ROUNDS = 4
"""Of them, where artifacts fall short of their simulations."""

WORTH_DB = 0.3
"""What an algorithm over the model must gain: less is the draw's, and every candidate on top pays its seconds."""


def rungs(allow: Sequence[str], base: Callable[[], Recipe], train: Callable[[Climb], None]) -> Iterator[Rung]:
    """The rungs that are allowed, cheapest first; the plain export is always the start.

    Args:
        allow: those of `NAMES` that may be tried.
        base: gives the recipe of the plain export.
        train: the last rung.
    """
    yield "ptq", partial(start, base=base)
    if "ptq" in allow:
        yield "ranges", ranges
    if "rounding" in allow:
        yield "rounding", rounding
    if "mixed" in allow:
        yield "mixed", mixed
    if "train" in allow:
        yield "train", train


def start(search: Climb, base: Callable[[], Recipe]) -> None:
    """The plain export."""
    search.attempt("ptq", base)


def ranges(search: Climb) -> None:
    """Every registered way to choose ranges."""
    for found in _offered(search, choices=True):
        here = search.here.recipe
        search.attempt(f"ranges: {found.name}", partial(_chosen, search, found, here), parent=here)


def rounding(search: Climb) -> None:
    """Every registered algorithm over the model, each on top of those that were kept."""
    for found in _offered(search, choices=False):
        here = search.here.recipe
        make = partial(_with, here, found)
        search.attempt(f"rounding: {found.name}", make, parent=here, worth_db=WORTH_DB)
        if search.here.figures.met:
            return


def _offered(search: Climb, *, choices: bool) -> list[Algorithm]:
    """What is registered and can be run here, and was not run yet."""
    from deploykit_calibration.algorithms import SAMPLES, STATISTICS, registered_algorithms

    run, done = search.bench.run, {step.name for step in search.here.recipe.algorithms}
    have = {STATISTICS: run is not None, SAMPLES: run is not None and bool(run.samples)}
    group, offered = "ranges" if choices else "rounding", []
    left = [each for each in registered_algorithms() if each.is_choice is choices and each.name not in done]
    row = search.bench.plan.request.precision.row
    for found in left:
        useless = found.without_effect(row)
        if useless:
            search.skip(f"{group}: {found.name}", useless)
            continue
        lacking = [need for need in sorted(found.needs) if not have[need]]
        if lacking:
            search.skip(f"{group}: {found.name}", f"it needs {' and '.join(lacking)} of calibration data: none is here")
        else:
            offered.append(found)
    if not left:
        search.skip(group, "no algorithm is registered that was not run already")
    return offered


def _chosen(search: Climb, found: Algorithm, here: Recipe) -> Recipe:
    """The recipe with what a choice decides."""
    from deploykit_calibration.algorithms import apply
    from deploykit_calibration.recipes import recipe_of

    made = recipe_of(apply(search.bench.prepared(here, with_data=bool(found.needs)), [found.name]))
    return replace(made, ladder=())


def _with(here: Recipe, found: Algorithm) -> Recipe:
    step = AlgorithmStep(found.name, found.version, dict(found.settings))  # what it decides is known when it has run
    return replace(here, algorithms=(*here.algorithms, step), ladder=())


def mixed(search: Climb) -> None:
    """Some layers wider or in float: ranked by sensitivity, and found by few evaluations over the Pareto front."""
    here = search.here
    for rest in _rests(search.bench.prepared(here.recipe)):
        scored = _scored(search, here, rest)
        if scored is None:
            continue
        mix = Mix(search, here, scored)
        for _ in range(ROUNDS):  # what an artifact fell short by is asked of the next on top
            mix.find()
            if not search.here.figures.met or search.confirmed() or search.hopeless or search.is_spent:
                break
        if search.here.figures.met or search.hopeless:
            return


def _rests(prepared: Prepared) -> tuple[str, ...]:
    """What a kept layer may become, the cheaper first: narrow weights may be held in 8 bits before they are float."""
    narrow = prepared.precision.row.weights.bits < 8
    widens = narrow and any(rule.wider is not None for rule in prepared.scheme.rules.values())
    return (WIDE, "") if widens else ("",)


def _scored(search: Climb, here: Point, rest: str) -> Sensitivity | None:
    from deploykit_calibration.sensitivity import sensitivity

    run = search.bench.run
    try:
        return sensitivity(search.bench.prepared(here.recipe), run.judged if run is not None else (), rest=rest)
    except DeploykitError as error:
        search.skip("mixed", error.message)
        return None


@dataclass(eq=False)
class Mix:
    """The search for the cheapest mix that meets the goal.

    Attributes:
        search: what measures.
        base: the candidate that it keeps layers of.
        scored: the layers' noise.
    """

    search: Climb
    base: Point
    scored: Sensitivity
    _known: set[frozenset[str]] = field(default_factory=set)
    _off_db: float = 0.0

    def find(self) -> None:
        """Measure the candidates that are predicted to meet the goal, cheapest first, until no cheaper one does.

        A candidate that was measured before is not again. What the first evaluations found predictions to be off by
        moves the gain that is wanted, and with it where on the front cheaper ways are looked for.
        """
        from deploykit_calibration.sensitivity import meet

        figures = self.search.fall.expected(self.base.simulated)
        task = self.search.bench.goal.task
        if task is not None and (figures.drop or 0.0) > task.max_drop:
            # a metric that fell follows no prediction of noise: the bisection begins in the middle
            front = self._front(None)
            if front:
                meet(front, partial(self._measured, lambda _: math.nan), 0.0, most=EVALUATIONS)
            return

        def predicted(candidate: Candidate) -> float:
            return figures.margin + candidate.gain_db + self._off_db

        found: Met | None = None
        for _ in range(2):
            front = self._front(-figures.margin - self._off_db)
            if found is not None and found.meets:  # what is left to find is cheaper
                front = [each for each in front if each.cost < found.best.cost and predicted(each) >= 0.0]
            if front:
                measured = partial(self._measured, predicted)
                found = meet(front, measured, 0.0, predicted=predicted, most=EVALUATIONS // 2)

    def _front(self, near_db: float | None) -> Sequence[Candidate]:
        least = self.search.bench.plan.gates.min_placement
        found = self.scored.front(least_share=LEAST_PLACED if least is None else least, near_db=near_db)
        kept = [candidate for candidate in found if candidate.kept]
        if not kept:
            self.search.skip("mixed", "no layer can be kept without missing the placement gate")
        return [candidate for candidate in kept if frozenset(candidate.kept) not in self._known]

    def _measured(self, predicted: Callable[[Candidate], float], candidate: Candidate) -> float:
        step = f"mixed: {_layers(candidate)} in {candidate.rest}"
        base = self.base.recipe
        found = self.search.attempt(step, partial(keep, base, candidate), parent=base, detail=sorted(candidate.kept))
        if found is None:
            return math.nan
        self._known.add(frozenset(candidate.kept))
        off_db = found.margin - predicted(candidate)
        self._off_db += 0.0 if math.isnan(off_db) else off_db
        return found.margin


def _layers(candidate: Candidate) -> str:
    return "1 layer" if len(candidate.kept) == 1 else f"{len(candidate.kept)} layers"


def keep(recipe: Recipe, candidate: Candidate) -> Recipe:
    """A recipe with the layers of a candidate kept wider, or in float."""
    precision = WIDE if candidate.rest == WIDE else FLOAT
    gain = f"{_layers(candidate)}: {candidate.gain_db:.1f} dB more by prediction"
    reason = f"{'holds 8 bits' if precision == WIDE else 'kept in float'}: {gain}"
    layers = tuple(
        replace(each, precision=precision, reason=reason, chosen=True) if each.name in candidate.kept else each
        for each in recipe.layers
    )
    return replace(recipe, layers=layers, ladder=())
