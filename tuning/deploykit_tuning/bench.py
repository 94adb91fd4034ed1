"""Measuring candidates: a recipe is prepared, and judged by its simulation, or by the artifact that is made of it."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract.precision import Evidence
from deploykit.contract.recipe import FLOAT, WIDE, Recipe
from deploykit.contract.session import FunctionSession, Session
from deploykit.contract.tensors import Feeds
from deploykit.judge.parity import Link, compare_sessions
from deploykit.pipeline.evidence import Samples, choose_samples, foreseen_of, is_seen
from deploykit.pipeline.plan import Plan, make_request, needs_data
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.publishing import published
from deploykit.pipeline.reference import reference_session
from deploykit.pipeline.staging import draft
from deploykit.pipeline.steps import lower, prepare
from deploykit.pipeline.watch import Watch, rows_of
from deploykit.plugin.artifact import Artifact
from deploykit_tuning.goal import LEAST, Goal, scored
from deploykit_tuning.ladder import ARTIFACT, SIMULATION, Figures

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared


_KEPT = 2
"""Prepared models in memory: what the search stands on, and the candidate. Each holds its weights several times."""
_CHOICES = ("method", "methods", "corrects_bias", "kept", "wider")


@dataclass(eq=False)
class Bench:
    """One model and its data, on which any number of recipes is measured.

    Attributes:
        plan: the request that the search began with, its gates and output.
        captured, run, data: as an export has them.
        goal: the goal that is to be reached.
        watch: notes which samples the metric is measured on.
    """

    plan: Plan
    captured: CapturedModel
    run: CalibrationRun | None
    data: Any
    goal: Goal
    watch: Watch
    _prepared: OrderedDict[str, Prepared] = field(default_factory=OrderedDict)
    _samples: Samples | None = None
    _reference: Session | None = None

    def prepared(self, recipe: Recipe, *, with_data: bool = False) -> Prepared:
        """The model prepared as a recipe says; the last two are kept, and what they have in common is made once.

        Args:
            with_data: prepare with statistics and samples, also where the recipe needs none: for an algorithm that
                does.
        """
        key = _key(recipe)
        if key not in self._prepared:
            asked = self.plan.request
            request = make_request(asked.target, asked.precision.value, recipe=recipe)
            made = self._on_top(recipe, request) or prepare(request, self.captured, self.run, target=self.plan.target)
            self._prepared[key] = made
        self._prepared.move_to_end(key)
        while len(self._prepared) > _KEPT:
            self._prepared.popitem(last=False)[1].release()
        made = self._prepared[key]
        if with_data and made.table is None and self.run is not None:
            return replace(made, table=self.run.table, samples=self.run.samples)
        return made

    def settled(self, recipe: Recipe) -> Recipe:
        """A recipe with what its algorithms decide from the data, and its layers as they come to be placed.

        A layer that nothing beside it computes in integers for is float, though only its neighbours were chosen to be:
        the recipe says so, as that of its artifact does, which is followed to the letter then. Prepared once.
        """
        from deploykit_calibration.recipes import recipe_of

        prepared = self.prepared(recipe)
        made = recipe_of(prepared)
        settled = replace(recipe, algorithms=made.algorithms, layers=made.layers)
        if settled != recipe:
            del self._prepared[_key(recipe)]
            asked = self.plan.request
            request = make_request(asked.target, asked.precision.value, recipe=settled)
            self._prepared[_key(settled)] = replace(prepared, request=request)
        return settled

    def is_same(self, recipe: Recipe, other: Recipe) -> bool:
        """Whether two recipes are known to make the same model, though their steps differ."""
        one, two = self._prepared.get(_key(recipe)), self._prepared.get(_key(other))
        if one is None or two is None:
            return False
        if one.scheme.is_static and one.table is not two.table:
            return False
        choices = all(getattr(one, name) == getattr(two, name) for name in _CHOICES)
        return choices and one.captured.fingerprint == two.captured.fingerprint

    def _on_top(self, recipe: Recipe, request: Request) -> Prepared | None:
        """The last algorithm of a recipe, run over what was prepared for those before it; None where nothing was."""
        if not recipe.algorithms:
            return None
        key = _key(replace(recipe, algorithms=recipe.algorithms[:-1]))
        before = self._prepared.get(key)
        if before is None:
            return None
        self._prepared.move_to_end(key)  # what the search stands on stays
        if before.table is None and needs_data(request):
            return None
        from deploykit_calibration.algorithms import apply

        last = recipe.algorithms[-1]
        return apply(replace(before, request=request), [last.name], [last.decided])

    def simulated(self, recipe: Recipe) -> Figures:
        """Figures of the simulated graph; of the lowered file in its runtime where nothing is simulated."""
        prepared = self.prepared(recipe)
        with self._session(prepared) as (session, on):
            found = self._judged(prepared, session)
        cost, unit = predicted_cost(prepared)
        return replace(found, int8_share=quantized_share(prepared), on=on, predicted_cost=cost, cost_unit=unit)

    @contextmanager
    def _session(self, prepared: Prepared) -> Iterator[tuple[Session, str]]:
        simulation = self.plan.target.simulate(prepared)
        if simulation is not None:
            inputs, outputs = prepared.reference.inputs, prepared.reference.outputs
            yield FunctionSession(_plain(simulation.run), inputs, outputs), SIMULATION
            prepared.discard(simulation)
            return
        with tempfile.TemporaryDirectory(prefix="deploykit-tune-") as name:
            folder = Path(name) / "candidate"
            payload = lower(prepared, folder, target=self.plan.target)
            made = draft(self.plan.target, prepared, payload, folder, calibration=None)
            with self.plan.target.open_for_parity(made) as session:
                yield session, ARTIFACT

    def _judged(self, prepared: Prepared, session: Session) -> Figures:
        samples = self._samples or choose_samples(prepared, self.run, self.data)
        self._samples = samples
        reference, task = self._remembered(prepared.reference), self.goal.task
        link, seen = compare_sessions(reference, session, samples.feeds), None
        if self.goal.passes(link):  # as the verdict on its artifact will have it
            known = samples.others.get(samples.seen, ())
            link = self._bounded(link, prepared, reference, (*samples.feeds, *known))
            seen = compare_sessions(reference, session, known).worst if known else None
        return self.goal.judge(link, None if task is None else task.measure(session), seen)

    @staticmethod
    def _bounded(link: Link, prepared: Prepared, reference: Session, known: Sequence[Feeds]) -> Link:
        """The link with what is expected of other samples bounded by what is foreseen of them."""
        foreseen = foreseen_of(prepared)
        if foreseen is None:
            return link
        drawn = FunctionSession(_plain(foreseen.simulation.run), reference.inputs, reference.outputs)
        return link.bounded(compare_sessions(reference, drawn, known))

    def _remembered(self, captured: CapturedModel) -> Session:
        """The float model, which computes each sample once for all candidates."""
        if self._reference is None:
            session, known = reference_session(captured), dict[tuple[bytes, ...], dict[str, np.ndarray]]()

            def run(feeds: Feeds) -> dict[str, np.ndarray]:
                key = tuple(rows_of(feeds))
                if key not in known:
                    known[key] = session.run(feeds)
                return {name: array.copy() for name, array in known[key].items()}

            self._reference = FunctionSession(run, session.inputs, session.outputs, threads=session.threads)
        return self._reference

    def artifact(self, recipe: Recipe, output: Path) -> Artifact:
        """Make the artifact of a recipe, prove it, and publish it at `output`, whether it passes or not."""
        prepared = self.prepared(recipe)
        plan = replace(self.plan, request=prepared.request, output=output)
        steps, task = Steps(enabled=False), self.goal.task
        run = self.run if needs_data(prepared.request) else None  # as an export of the recipe has it
        return published(plan, lambda: prepared, run, data=self.data, task=task, steps=steps, strict=False)

    def proved(self, artifact: Artifact) -> Figures:
        """Figures of an artifact, as its report has them."""
        report, profile = artifact.parity, artifact.profile
        assert report is not None
        seen = next((other.worst for other in report.other_samples if is_seen(other.data)), None)
        found = self.goal.judge(report.chain[-1], None, seen)
        found = found if report.metric is None else scored(found, report.metric)
        here = profile is not None and profile.evidence is Evidence.DEVICE
        met = artifact.status != "failed"
        return replace(
            found,
            met=met,
            failures=tuple(miss.message for miss in self.plan.gates.misses(artifact.achieved, report, profile)),
            margin_db=found.margin_db if met or found.margin < 0.0 else -LEAST,
            int8_share=artifact.achieved.as_asked_fraction,
            on=ARTIFACT,
            measured_cost=profile.latency_ms.p50 if here and profile is not None else None,
            is_hopeless=not met and report.passed,
        )


def _key(recipe: Recipe) -> str:
    return replace(recipe, ladder=()).fingerprint


def _plain(run: Any) -> Any:
    def arrays(feeds: Feeds) -> dict[str, np.ndarray]:
        found: Mapping[str, Any] = run(feeds)
        return {name: np.asarray(value) for name, value in found.items()}

    return arrays


def quantized_share(prepared: Prepared) -> float | None:
    """Share of the multiply-accumulates that are placed in the precision asked for; None where nothing is counted."""
    total = sum(layer.macs for layer in prepared.layers)
    apart = {layer.name for layer in prepared.layers if layer.precision == FLOAT} | prepared.wider.keys()
    placed = sum(layer.macs for layer in prepared.layers if layer.name not in apart)
    return placed / total if total and prepared.scheme.quantizes else None


def predicted_cost(prepared: Prepared) -> tuple[float | None, str]:
    """Cost of all layers by the device table, and its unit; None where nothing is placed."""
    from deploykit_calibration.sensitivity import costs_of

    if not prepared.scheme.quantizes:
        return None, ""
    costs, wider = costs_of(prepared), [layer for layer in prepared.layers if layer.name in prepared.wider]
    others = (layer for layer in prepared.layers if layer.name not in prepared.wider)
    of_wider = costs_of(prepared, WIDE).of(wider, apart=prepared.wider) if wider else 0.0
    return costs.of(others) + of_wider, costs.unit
