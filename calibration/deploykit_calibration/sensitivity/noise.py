"""Noise of a candidate: the scores of the roundings that its plan leaves, beside what was measured with none kept.

Scores are of the first order, each rounding as if there were no other: noise that clipping, norms and softmax take out
again because there is so much of it is counted in full. How much that is shows with none kept, where noise was
measured: n is measured where the scores say l, and n = l / (1 + a l) fixes a. Of what is kept the noise then falls more
slowly than the scores do, and at last as they do. Where less was scored than measured, a is 0: nothing says which
roundings the rest is of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit_calibration.sensitivity.ends import End
from deploykit_calibration.sensitivity.planning import KEPT, Planned, Planning
from deploykit_calibration.sensitivity.scores import Scores, score

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.sensitivity.search import Move


_WIDENED = 1 / 256  # of a weight's noise in 4 bits is left in 8: sixteen times as many steps


class NoiseModel:
    """Predicts the noise of a prepared model with some of its layers kept.

    Args:
        prepared: the model with none of them kept.
        samples: feeds by input name.
        ends: what to measure at, with what was measured there.
        widens: see `Planning`.
    """

    def __init__(
        self,
        prepared: Prepared,
        samples: Sequence[Mapping[str, Tensor]],
        ends: tuple[End, ...],
        *,
        widens: bool = False,
    ) -> None:
        self.ends = ends
        self._prepared, self._samples = prepared, samples
        self._planning = Planning(prepared, widens=widens)
        self._plans: dict[frozenset[str], Planned] = {}
        self._relative: dict[frozenset[str], float] = {}
        self._scored = score(prepared, samples, ends)
        self.passes = self._scored.passes
        self.base = self.planned(())
        self.candidates = self._planning.candidates(self.base)
        self._before = frozenset(self.base.widened)
        self._total = [
            (self._powers(scores, self.base), self._along(scores, self.base)) for scores in self._scored.scores
        ]
        self._score_new()

    def planned(self, kept: Move) -> Planned:
        """The plan of a candidate."""
        key = frozenset(kept)
        if key not in self._plans:
            self._plans[key] = self._planning.plan(kept)
        return self._plans[key]

    def predicted_db(self, kept: Move) -> float:
        """SQNR of the worst end: what was measured with none kept, less the noise that goes."""
        return min(self._predicted(self.planned(kept)))

    def relative(self, kept: Move) -> float:
        """Noise at the end that is worst then, relative to that of the worst end with none kept.

        By powers alone, which never grow with what is kept: what is searched by this cannot be lucky.
        """
        key = frozenset(kept)
        if key not in self._relative:
            self._relative[key] = self._of_powers(self.planned(kept))
        return self._relative[key]

    def _of_powers(self, planned: Planned) -> float:
        if self._unscored(planned):
            return math.inf
        before, worst = min(end.sqnr_db for end in self.ends), 0.0
        for end, scores, (whole, _) in zip(self.ends, self._scored.scores, self._total, strict=True):
            rate = saturated(self._powers(scores, planned) / (whole or 1.0), whole, end)
            worst = max(worst, rate * math.pow(10.0, (before - end.sqnr_db) / 10.0))
        return worst

    def alone(self, layer: str) -> float:
        """Share of the noise at the worst end that what a layer reads, stores and writes makes."""
        at = min(range(len(self.ends)), key=lambda each: self.ends[each].sqnr_db)
        scores, total = self._scored.scores[at], self._total[at][0]
        counted, written = self.base.counted, self.base.written.get(layer, ())
        reads: dict[str, tuple[str, ...]] = {name: (layer,) for name, readers in counted.items() if layer in readers}
        reads |= {name: counted[name] for name in written if name in counted}
        return scores.powers(reads, (layer,)) / total if total else 0.0

    @property
    def slopes(self) -> Mapping[str, float]:
        """Square of the plain gradient of what each layer stores, at the worst end."""
        at = min(range(len(self.ends)), key=lambda each: self.ends[each].sqnr_db)
        return self._scored.scores[at].slopes

    def _predicted(self, planned: Planned) -> list[float]:
        if self._unscored(planned):
            return [-SQNR_CAP_DB] * len(self.ends)
        rates = (
            saturated(self._rate(scores, *total, planned), total[0], end)
            for end, scores, total in zip(self.ends, self._scored.scores, self._total, strict=True)
        )
        return [min(end.sqnr_db - decibels(rate), SQNR_CAP_DB) for end, rate in zip(self.ends, rates, strict=True)]

    def _powers(self, scores: Scores, planned: Planned) -> float:
        wide = [name for name in planned.widened if name not in self._before]
        narrow = [name for name in planned.stored if name not in wide]
        return scores.powers(planned.counted, narrow) + _WIDENED * scores.powers({}, wide)

    def _along(self, scores: Scores, planned: Planned) -> float:
        wide = [name for name in planned.widened if name not in self._before]
        narrow = [name for name in planned.stored if name not in wide]
        return scores.along(planned.counted, narrow) + _WIDENED * scores.powers({}, wide)

    def _rate(self, scores: Scores, powers: float, along: float, planned: Planned) -> float:
        """Noise that is left, relative to all of it: the mean of the two estimates."""
        rates = [(self._powers(scores, planned), powers), (self._along(scores, planned), along)]
        return sum(left / whole if whole > 0.0 else 1.0 for left, whole in rates) / len(rates)

    def _unscored(self, planned: Planned) -> bool:
        known = self._scored
        return not (planned.pairs <= known.reads and known.stored.issuperset(planned.stored))

    def _score_new(self) -> None:
        """Score what is rounded only where a layer is kept: a residual addition is fused to another one then."""
        names = [layer.name for layer in self.candidates]
        new = [name for name in names if self._unscored(self.planned((name,)))]
        if not new:
            return
        kept = {**self._prepared.kept, **dict.fromkeys(new, KEPT)}
        other = score(replace(self._prepared, kept=kept), self._samples, self.ends)
        self.passes += other.passes
        for own, more in zip(self._scored.scores, other.scores, strict=True):
            own.join(more)
        known = self._scored
        self._scored = replace(known, reads=known.reads | other.reads, stored=known.stored | other.stored)


def saturated(rate: float, scored: float, end: End) -> float:
    """Noise that is left, relative to all of it as it was measured.

    Args:
        rate: the same by the scores.
        scored: all of it by the scores, of which `end.noise` was measured.
    """
    excess = max(scored / end.noise, 1.0) if end.noise > 0.0 else 1.0
    return rate * excess / (1.0 + rate * (excess - 1.0))


def decibels(rate: float) -> float:
    """10 log10 of a share of the noise; twice the cap below 0 where none is left."""
    return 10.0 * math.log10(rate) if rate > 0.0 else -2 * SQNR_CAP_DB
