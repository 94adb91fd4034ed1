"""The last rung: the user's own training, on the arithmetic of the target (`deploykit.qat`).

What is trained is the plain placement of the target, from the user's model as it is; rounding algorithms have no part
in it, because training finds its own weights. Its distance is that of the artifact from what was trained, and the task
metric that from the float model of the start. Where training did not help, the model gets its parameters back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deploykit.contract.errors import DeploykitError
from deploykit_tuning.climb import Climb, bare
from deploykit_tuning.goal import better
from deploykit_tuning.journal import Entry, key_of
from deploykit_tuning.ladder import FAILED, KEPT, PASSED_OVER, Figures, LadderStep

STEP = "train"


@dataclass(eq=False)
class Training:
    """What is needed to train.

    Attributes:
        model: the user's own; None, or something without parameters, where it cannot be trained.
        train: the user's function: trains the model that it is given, in place.
        arguments: the arguments of `deploykit.qat`, by name.
        exported: arguments of the export of what was trained, by name.
        notes: what was found while training.
        is_kept: whether the model has the trained parameters now.
    """

    model: Any
    train: Callable[[Any], Any] | None
    arguments: Mapping[str, Any]
    exported: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    is_kept: bool = False

    def why_not(self, search: Climb) -> str:
        """Why nothing can be trained; "" where it can."""
        from torch import nn

        if self.train is None:
            return "no train= was given"
        if search.bench.goal.task is None:
            return "a training is judged by a metric: pass evaluate="
        if not isinstance(self.model, nn.Module):
            return f"a {type(self.model).__name__} has no parameters to train: pass the nn.Module"
        return ""

    def __call__(self, search: Climb) -> None:
        """Train, export what was trained, and keep it where it is better."""
        reason = self.why_not(search)
        if reason:
            search.skip(STEP, reason)
            return
        key = key_of(STEP, bare(search.here.recipe).fingerprint)
        known = search.journal.recall(key)
        if known is not None:
            search.take_artifact(known)
            return
        search.line.show(STEP, search.best)
        search.take_artifact(self._trained(search, key), new=True)

    def _trained(self, search: Climb, key: str) -> Entry:
        began = time.perf_counter()
        before = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        try:
            entry = self._measured(search, key, began)
        except DeploykitError as error:
            entry = Entry(key, LadderStep.of(STEP, FAILED, None, time.perf_counter() - began, error.message))
        except BaseException:
            self.model.load_state_dict(before)
            raise
        self.is_kept = entry.step.outcome == KEPT
        if not self.is_kept:
            self.model.load_state_dict(before)
        return entry

    def _measured(self, search: Climb, key: str, began: float) -> Entry:
        import deploykit

        assert self.train is not None
        with deploykit.qat(self.model, **self.arguments) as trained:
            self.train(trained.model)
        self.notes += trained.notes
        folder = search.folder(key)
        artifact = trained.export(output=folder, strict=False, task=search.bench.goal.task, **self.exported)
        figures: Figures = search.bench.proved(artifact)
        here = search.here.figures  # its SQNR is against the float model, and that of the trained one is not
        outcome = KEPT if better(replace(figures, sqnr_db=here.sqnr_db), here) else PASSED_OVER
        step = LadderStep.of(STEP, outcome, figures, time.perf_counter() - began)
        assert artifact.recipe is not None
        return Entry(key, step, replace(artifact.recipe, ladder=()), figures)
