"""Candidates: some layers in float, what that gains and what it costs, and the front that nothing dominates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit.contract.recipe import WIDE

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared


@dataclass(frozen=True)
class Candidate:
    """A model with some of its layers kept in float, or wider than others.

    Attributes:
        kept: names of the layers' nodes, in the order in which they were chosen.
        sqnr_db: predicted, of the worst output (or part of one).
        gain_db: how much better than with no layer kept.
        cost: predicted, in the unit of the costs.
        quantized_share: share of the multiply-accumulates that stay quantised, 0 to 1.
        rest: what the kept layers compute in; `int8-weights` where they are stored so among narrower ones.
    """

    kept: tuple[str, ...]
    sqnr_db: float
    gain_db: float
    cost: float
    quantized_share: float
    rest: str

    def applied(self, prepared: Prepared, reason: str = "") -> Prepared:
        """The prepared model with these layers kept."""
        from deploykit_calibration.sensitivity.planning import KEPT, WIDENED

        if self.rest == WIDE:
            return replace(prepared, wider={**prepared.wider, **dict.fromkeys(self.kept, reason or WIDENED)})
        return replace(prepared, kept={**prepared.kept, **dict.fromkeys(self.kept, reason or KEPT)})

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "kept": list(self.kept),
            "sqnr_db": round(self.sqnr_db, 3),
            "gain_db": round(self.gain_db, 3),
            "cost": self.cost,
            "quantized_share": round(self.quantized_share, 6),
            "rest": self.rest,
        }


def front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other beats in predicted SQNR, cost and quantised share at once, cheapest first."""
    found: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda each: (each.cost, -each.quantized_share, -each.sqnr_db)):
        if not any(_dominates(other, candidate) for other in found):
            found.append(candidate)
    return tuple(found)


def _dominates(other: Candidate, candidate: Candidate) -> bool:
    """Whether one is at least as good in everything; of two that are alike the first stays."""
    return (
        other.sqnr_db >= candidate.sqnr_db
        and other.cost <= candidate.cost
        and other.quantized_share >= candidate.quantized_share
    )


def shares(candidates: Sequence[Candidate], least: float) -> tuple[Candidate, ...]:
    """Those of which at least this share of the multiply-accumulates stays quantised."""
    return tuple(each for each in candidates if each.quantized_share >= least)
