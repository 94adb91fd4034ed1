"""How far an artifact falls short of its simulation, and what is therefore expected of other simulations.

A runtime rounds otherwise than PyTorch here and there. Mostly that is nothing; in a network that makes much of small
differences it is decibels, and a search that took simulations at their word would end in artifacts that miss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from deploykit_tuning.ladder import Figures


@dataclass(frozen=True)
class Fall:
    """What an artifact has less than its simulation; 0 of what was not measured.

    Attributes:
        margin_db: of the margin in dB.
        margin_share: of the task metric's margin, a share of what it may fall.
        sqnr_db: of the SQNR, in dB.
    """

    margin_db: float = 0.0
    margin_share: float = 0.0
    sqnr_db: float = 0.0

    @classmethod
    def between(cls, simulated: Figures, artifact: Figures) -> Fall:
        """What was lost; a gain is no loss."""
        return cls(*(_less(getattr(simulated, name), getattr(artifact, name)) for name in cls.__dataclass_fields__))

    def expected(self, simulated: Figures) -> Figures:
        """What the artifact of another candidate is expected to have."""
        margin_db = _minus(simulated.margin_db, self.margin_db)
        share = _minus(simulated.margin_share, self.margin_share)
        found = replace(
            simulated, margin_db=margin_db, margin_share=share, sqnr_db=_minus(simulated.sqnr_db, self.sqnr_db)
        )
        if found.margin >= 0.0 or not simulated.met:
            return found
        margin, lost = (margin_db, self.margin_db) if found.margin == margin_db else (share, self.margin_share)
        assert margin is not None
        unit = " dB" if found.margin == margin_db else " of what the metric may fall"
        reason = f"its artifact is expected to miss: the last one fell {lost:.2g}{unit} short of its simulation"
        return replace(found, met=False, failures=(f"{reason}, and this has {margin + lost:.2g} to spare",))


NO_FALL = Fall()


def _less(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else max(before - after, 0.0)


def _minus(value: float | None, less: float) -> float | None:
    return None if value is None else value - less
