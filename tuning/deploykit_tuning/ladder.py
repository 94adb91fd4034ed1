"""What was tried, and what came of it: values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.contract.printable import aligned
from deploykit.contract.recipe import Recipe, TriedStep
from deploykit.judge import figures

if TYPE_CHECKING:
    from deploykit.plugin.artifact import Artifact

KEPT, PASSED_OVER, SKIPPED, FAILED = "kept", "passed over", "skipped", "failed"
SIMULATION, ARTIFACT = "simulation", "artifact"


@dataclass(frozen=True)
class Figures:
    """What was measured of one candidate, on data that calibration did not see.

    Attributes:
        met: whether it passes every gate of the goal.
        failures: those that it misses, in words.
        margin_db: by how many dB it passes, or misses (negative), the gate of parity that is nearest; None where there
            is none.
        sqnr_db: the SQNR of the worst output against the float model; None where it says nothing.
        metric, drop, drop_low, drop_high: the task metric, how far it fell, and the 95 % interval of that.
        short: how much further the metric fell than it may, in its own unit; 0 where that gate holds or there is none.
        int8_share: the share of multiply-accumulates that are in the precision asked for, 0 to 1.
        on: what was measured, `simulation` or `artifact`.
        predicted_cost, cost_unit: the cost that the device table predicts, and its unit.
        measured_cost: median latency in ms on the device; None where it was not measured there.
        is_hopeless: what is missed is placement or speed, which no rung changes for the better.
        margin_share: by how much it passes, or misses (negative), the gate of the metric, as a share of what that may
            fall; None without a metric.
    """

    met: bool
    failures: tuple[str, ...]
    margin_db: float | None
    sqnr_db: float | None
    metric: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    int8_share: float | None = None
    on: str = SIMULATION
    predicted_cost: float | None = None
    cost_unit: str = ""
    measured_cost: float | None = None
    is_hopeless: bool = False
    short: float = 0.0
    margin_share: float | None = None

    @property
    def margin(self) -> float:
        """That of the two that is nearer to a miss; below 0 wherever a gate is missed, infinite without any."""
        return min((each for each in (self.margin_db, self.margin_share) if each is not None), default=math.inf)


@dataclass(frozen=True)
class LadderStep(TriedStep):
    """One step of the ladder, with what it took; see `TriedStep` for the rest.

    Attributes:
        predicted_cost, cost_unit: the cost that the device table predicts, and its unit.
        measured_cost: median latency in ms of its artifact; None where it was not measured on the device.
        seconds: the time that the step took.
    """

    predicted_cost: float | None = None
    cost_unit: str = ""
    measured_cost: float | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, step: str, outcome: str, found: Figures | None, seconds: float, reason: str = "") -> LadderStep:
        """A step with the figures of its candidate; None where it came to none."""
        if found is None:
            return cls(step, outcome, reason, seconds=seconds)
        shared = {each.name for each in fields(cls)} & {each.name for each in fields(found)}
        values = {name: getattr(found, name) for name in shared}
        return cls(step, outcome, reason or "; ".join(found.failures), seconds=round(seconds, 3), **values)

    @property
    def recorded(self) -> TriedStep:
        """Without anything that differs from run to run, for a recipe."""
        return TriedStep(**{each.name: getattr(self, each.name) for each in fields(TriedStep)})


@dataclass(frozen=True, eq=False)
class TunePlan:
    """What `deploykit.tune` found.

    Attributes:
        recipe: the recipe of the best candidate, with the ladder that led to it; `deploykit.export(recipe=...)` follows
            it.
        ladder: every step that was tried, in order, those that came to nothing too.
        best: its artifact, measured as such.
        met: whether it passes every gate.
        notes: what must be known of the figures.
        model: the model that was trained, where training was the step that is kept; the recipe is of this model then.
    """

    recipe: Recipe
    ladder: tuple[LadderStep, ...]
    best: Artifact
    met: bool
    notes: tuple[str, ...] = ()
    model: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        rows = [("step", "outcome", "SQNR", "metric", "drop", "placed", "reason")]
        rows += [
            (
                step.step,
                step.outcome,
                figures.decibel(step.sqnr_db),
                figures.plain(step.metric),
                figures.plain(step.drop),
                figures.share(step.int8_share),
                step.reason,
            )
            for step in self.ladder
        ]
        verdict = "every gate is met" if self.met else "a gate is missed"
        return f"{self.best.path}: {verdict}\n{aligned(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            "met": self.met,
            "best": str(self.best.path),
            "recipe": msgspec.to_builtins(self.recipe),
            "ladder": [msgspec.to_builtins(step) for step in self.ladder],
            "notes": list(self.notes),
        }
