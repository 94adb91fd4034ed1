"""The climb: steps are tried in the order of their cost, each written down, until one meets the goal.

What it returns is never worse than its start: the best artifact is measured as such, and where it is no better than
the start's, the start is what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploykit.contract.errors import ConversionError, DeploykitError
from deploykit.contract.recipe import Recipe
from deploykit.plugin.artifact import Artifact, load
from deploykit_tuning.bench import Bench
from deploykit_tuning.fall import NO_FALL, Fall
from deploykit_tuning.goal import better
from deploykit_tuning.journal import Entry, Journal, key_of
from deploykit_tuning.ladder import ARTIFACT, FAILED, KEPT, PASSED_OVER, SKIPPED, Figures, LadderStep
from deploykit_tuning.line import Line

_SPENT = "the budget of "
Make = Callable[[], Recipe]
_PROOFS = 3
"""Artifacts that are made of what one rung found, where the first falls short of its simulation."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that was measured, and the step that led to it.

    Attributes:
        step: its name in the ladder.
        recipe: what it decides.
        figures: what is expected of its artifact, or what that was measured to have.
        simulated: what was measured of its simulation.
    """

    step: str
    recipe: Recipe
    figures: Figures
    simulated: Figures


Proof = tuple[Candidate, Artifact, Figures]
"""A candidate, its artifact, and what that was measured to have."""


@dataclass(eq=False)
class Climb:
    """One search.

    Attributes:
        bench: measures.
        journal: keeps what was measured.
        line: shows where the search is.
        budget_s: seconds that all steps may take together; None for any.
        start, best: candidates; None until the first step is done.
        ladder: steps, in order.
        hopeless: the gate that an artifact missed although it computes what it should: placement or speed, which no
            rung changes for the better; "" until then.
        fall: how far the last artifact that missed fell short of its simulation: what later simulations are expected
            to fall, too.
    """

    bench: Bench
    journal: Journal
    line: Line
    budget_s: float | None = None
    start: Candidate | None = None
    best: Candidate | None = None
    ladder: list[LadderStep] = field(default_factory=list)
    hopeless: str = ""
    fall: Fall = NO_FALL
    _proved: dict[str, Proof] = field(default_factory=dict)
    _met: list[Candidate] = field(default_factory=list)

    @property
    def spent_s(self) -> float:
        """Seconds of all steps, those of a search that was killed too."""
        return sum(step.seconds for step in self.ladder)

    @property
    def is_spent(self) -> bool:
        """Whether no step may begin any more; the first one always may."""
        return self.budget_s is not None and self.start is not None and self.spent_s >= self.budget_s

    @property
    def here(self) -> Candidate:
        """The best candidate until now."""
        assert self.best is not None
        return self.best

    def attempt(
        self, step: str, make: Make, *, parent: Recipe | None = None, detail: object = "", worth_db: float = 0.0
    ) -> Figures | None:
        """Make a candidate and measure it; the best one is kept.

        Args:
            step: its name in the ladder.
            make: gives the recipe. What it refuses is told in the ladder; what the metric raises passes.
            parent, detail: what it is made from and how, by which the step is known again.
            worth_db: what it must gain to be kept where it does not meet the goal, and no task tells.
        Returns:
            What is expected of its artifact; None where it came to no candidate, or the budget is spent.
        """
        if self.is_spent:
            self.skip(step, f"{_SPENT}{self.budget_s:g} s is spent")
            return None
        key = key_of(step, "" if parent is None else bare(parent).fingerprint, detail)
        known = self.journal.recall(key)
        if known is None:
            self.line.show(step, self.best)
        entry = known or self._measured(step, make, key, worth_db)
        found = self._take(entry, new=known is None)
        if found is not None and found.simulated.met:
            self._met.append(found)
        return None if found is None else found.figures

    def _measured(self, step: str, make: Make, key: str, worth_db: float) -> Entry:
        began = time.perf_counter()
        try:
            recipe = self.bench.settled(make())
        except DeploykitError as error:
            if self.best is None:  # what the user asked for cannot be made: there is nothing to search from
                raise
            return Entry(key, LadderStep.of(step, FAILED, None, time.perf_counter() - began, error.message))
        if self.best is not None and bare(recipe) == bare(self.best.recipe):
            seconds = time.perf_counter() - began
            return Entry(key, LadderStep.of(step, PASSED_OVER, None, seconds, "it decides what was decided before"))
        if self.best is not None and self.bench.is_same(recipe, self.best.recipe):
            seconds = time.perf_counter() - began
            return Entry(key, LadderStep.of(step, PASSED_OVER, None, seconds, "it found nothing to change"))
        figures = self.bench.simulated(recipe)
        expected = self.fall.expected(figures)
        is_kept = self.best is None or better(expected, self.best.figures, worth_db)
        seconds = time.perf_counter() - began
        told = LadderStep.of(step, KEPT if is_kept else PASSED_OVER, figures, seconds, "; ".join(expected.failures))
        return Entry(key, told, recipe, figures)

    def _take(self, entry: Entry, *, new: bool = False) -> Candidate | None:
        if new:
            self.journal.add(entry)
        self.ladder.append(entry.step)
        if entry.recipe is None or entry.figures is None:
            return None
        found = Candidate(entry.step.step, entry.recipe, self.fall.expected(entry.figures), entry.figures)
        if entry.step.outcome == KEPT:
            self.best = found
            self.start = self.start or found
        return found

    def take_artifact(self, entry: Entry, *, new: bool = False) -> None:
        """Take a step that made an artifact of its own, in the folder of its key.

        One that is passed over stands for no candidate: it was judged against what was trained, and a training that
        changed nothing has the recipe of its start.
        """
        is_kept = entry.step.outcome == KEPT and entry.recipe is not None and entry.figures is not None
        if is_kept and self.folder(entry.key).is_dir():
            assert entry.recipe is not None and entry.figures is not None
            artifact = load(self.folder(entry.key))
            made = Candidate(entry.step.step, entry.recipe, entry.figures, entry.figures)
            self._proved[bare(entry.recipe).fingerprint] = (made, artifact, entry.figures)
        self._take(entry, new=new)

    def skip(self, step: str, reason: str) -> None:
        """Tell of a step that is not tried."""
        self.ladder.append(LadderStep.of(step, SKIPPED, None, 0.0, reason))

    def confirmed(self) -> bool:
        """Whether the best candidate is expected to meet the goal, and its artifact does.

        Where the artifact falls short of the simulation, so are others expected to: the cheapest that is still expected
        to meet the goal is proved in its place. If none does, what came nearest is no longer taken to meet the goal,
        and the climb goes on from there with what simulations have to reach.
        """
        if self.best is None or not self.best.figures.met:
            return False
        tried: Candidate | None = self.best
        nearest: Candidate | None = None
        for _ in range(_PROOFS):
            assert tried is not None
            figures = self._confirmed(tried)
            if figures.met:
                self.best = replace(tried, figures=figures)
                return True
            if nearest is None or better(figures, nearest.figures):
                nearest = replace(tried, figures=figures)
            tried = None if figures.is_hopeless or self.is_spent else self._next()
            if tried is None:
                break
        assert nearest is not None
        self.best = nearest
        self.hopeless = "; ".join(nearest.figures.failures) if nearest.figures.is_hopeless else ""
        return False

    def _confirmed(self, candidate: Candidate) -> Figures:
        """The figures of its artifact; how far it fell is what the next are expected to fall."""
        figures = self.prove(candidate)[2]
        if not figures.met and not figures.is_hopeless:
            self.fall = Fall.between(candidate.simulated, figures)
        return figures

    def _next(self, *, expected: bool = True) -> Candidate | None:
        """Of what met the goal in simulation and was not made yet, the cheapest that is expected to as an artifact.

        Args:
            expected: False takes what met it by most, whatever is expected of it.
        """
        left = [each for each in self._met if bare(each.recipe).fingerprint not in self._proved]
        if not expected:
            return max(left, key=lambda each: each.simulated.margin, default=None)
        enough = [each for each in left if self.fall.expected(each.simulated).met]
        return min(enough, key=lambda each: each.simulated.predicted_cost or 0.0, default=None)

    def prove(self, candidate: Candidate) -> Proof:
        """The artifact of a candidate, measured; made once.

        Raises:
            ConversionError and others: it cannot be made; see `deploykit.export`.
        """
        name = bare(candidate.recipe).fingerprint
        if name not in self._proved:
            self._proved[name] = (candidate, *(self._recalled(candidate, name) or self._made(candidate, name)))
        return self._proved[name]

    def folder(self, name: str) -> Path:
        """Where an artifact of the search lies until it ends."""
        return self.journal.folder / f"artifact-{name[:16]}"

    def _recalled(self, candidate: Candidate, name: str) -> tuple[Artifact, Figures] | None:
        known = self.journal.recall(key_of(ARTIFACT, name))
        if known is None or known.figures is None or not self.folder(name).is_dir():
            return None
        self.ladder.append(known.step)
        return load(self.folder(name)), known.figures

    def _made(self, candidate: Candidate, name: str) -> tuple[Artifact, Figures]:
        step = f"{candidate.step}: {ARTIFACT}"
        self.line.show(step, self.best)
        began = time.perf_counter()
        artifact = self.bench.artifact(candidate.recipe, self.folder(name))
        figures = self.bench.proved(artifact)
        figures = replace(
            figures, predicted_cost=candidate.figures.predicted_cost, cost_unit=candidate.figures.cost_unit
        )
        told = LadderStep.of(step, KEPT if figures.met else FAILED, figures, time.perf_counter() - began)
        self.journal.add(Entry(key_of(ARTIFACT, name), told, candidate.recipe, figures))
        self.ladder.append(told)
        return artifact, figures

    def finished(self) -> tuple[Candidate, Artifact, Figures]:
        """The best artifact of the search; the start's, where none is better."""
        if self.best is None or self.start is None:
            reason = "; ".join(step.reason for step in self.ladder if step.reason)
            raise ConversionError(f"nothing could be measured: {reason}", hint="export without tune to see the error")
        found = self.prove(self.best)
        if not found[2].met:
            last = None if self.hopeless or self.is_spent else self._next(expected=False)
            for known in (*self._proved.values(), *(() if last is None else (self.prove(last),))):
                found = _preferred(found, known)
        if found[2].met or self.best.recipe == self.start.recipe or better(found[2], self.start.simulated):
            return found
        return _preferred(found, self.prove(self.start))


def _preferred(one: Proof, other: Proof) -> Proof:
    return other if better(other[2], one[2]) else one


def is_out_of_budget(step: LadderStep) -> bool:
    """Whether a step was not tried because the seconds were spent."""
    return step.outcome == SKIPPED and step.reason.startswith(_SPENT)


def bare(recipe: Recipe) -> Recipe:
    """Without its ladder: the decisions alone."""
    return replace(recipe, ladder=())


def climb(search: Climb, rungs: Iterator[tuple[str, Callable[[Climb], None]]]) -> None:
    """Try rungs until the goal is met or the budget is spent."""
    for name, rung in rungs:
        if search.is_spent:
            search.skip(name, f"{_SPENT}{search.budget_s:g} s is spent")
            continue
        if search.hopeless:
            search.skip(name, f"it would not change what is missed: {search.hopeless}")
            continue
        rung(search)
        if search.confirmed():
            return
