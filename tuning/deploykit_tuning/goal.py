"""The goal of a search: the gates of an export, judged on a simulation as well as on an artifact."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

from deploykit.judge.parity import Link, Metrics, TaskMetric, Tolerance, failures_of, margin_of
from deploykit.judge.scores import Scores
from deploykit.pipeline.evidence import Task, task_metric
from deploykit_tuning.ladder import Figures

LEAST = 1e-6
"""The margin of what is missed by less than figures resolve: never 0."""


@dataclass(frozen=True)
class Goal:
    """What a candidate must reach.

    Attributes:
        tolerance: parity gate.
        task: the user's metric, with what the float model reaches; None where there is none.
    """

    tolerance: Tolerance
    task: Task | None = None

    def passes(self, link: Link) -> bool:
        """Whether what is compared on held-out samples meets the parity gate."""
        return not failures_of(link, self.tolerance, of_others=True)

    def judge(self, link: Link, scores: Scores | None, seen: Metrics | None = None) -> Figures:
        """The figures of a candidate that was compared and, where there is a task, scored.

        Args:
            link: float model against the candidate.
            scores: the scores of the candidate; None without a task.
            seen: the worst figures on samples that calibration saw, which must pass the gate, too; None where there are
                none, or what was held out misses it already.
        """
        failures = failures_of(link, self.tolerance, of_others=True) or self._failures_of_seen(seen)
        of_seen = self.tolerance.margins_db(seen) if seen else ()
        margin = min((margin_of(link, self.tolerance, of_others=True), *of_seen))
        found = Figures(not failures, failures, margin if math.isfinite(margin) else None, link.worst.sqnr_db)
        if self.task is None or scores is None:
            return found
        assert self.task.known is not None
        return scored(found, task_metric(self.task, self.task.known, scores))

    def _failures_of_seen(self, seen: Metrics | None) -> tuple[str, ...]:
        found = self.tolerance.misses(seen) if seen else ()
        return tuple(f"{failure}, on samples that calibration saw" for failure in found)


def scored(found: Figures, metric: TaskMetric) -> Figures:
    """Figures with a task metric added: its gate is one more, and its margin a share of what it may fall."""
    missed = () if metric.passed else (metric.miss,)
    margin = (metric.max_drop - metric.drop) / (abs(metric.max_drop) or 1.0)
    margin = -sys.float_info.max if math.isnan(margin) else margin
    return replace(
        found,
        met=found.met and metric.passed,
        failures=found.failures + missed,
        margin_share=margin if metric.passed else min(margin, -LEAST),
        metric=metric.artifact,
        drop=metric.drop,
        short=0.0 if metric.passed else max(0.0, metric.drop - metric.max_drop),
        drop_low=None if metric.fall is None else metric.fall.low,
        drop_high=None if metric.fall is None else metric.fall.high,
    )


def better(one: Figures, other: Figures, worth_db: float = 0.0) -> bool:
    """Whether `one` is to be preferred: it meets the goal, or is nearer; of two that meet it, the cheaper.

    The task decides as far as it is missed, because the SQNR alone can mis-rank; the SQNR decides between equals: of
    two that keep the metric, a higher one by chance is not nearer to what is asked for.

    Args:
        worth_db: least gain where the SQNR decides and neither meets the goal: less is a matter of the samples.
    """
    first, second = _rank(one), _rank(other)
    if first[:-1] == second[:-1]:
        return first[-1] > second[-1] + (0.0 if one.met else worth_db)
    return first > second


def _rank(found: Figures) -> tuple[bool, float, float, float]:
    sqnr_db = -math.inf if found.sqnr_db is None else found.sqnr_db
    cheap = -(found.predicted_cost or 0.0) if found.met else 0.0
    return (found.met, cheap, -found.short, sqnr_db)
