"""The gates between a finished artifact and its publication: parity, placement, performance.

Gates fail closed: an int8 artifact that is mostly float misses the placement gate even if none was asked for, and a
speed gate is passed by a measurement on the device alone: an estimate neither meets nor misses a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from deploykit.contract.achieved import Achieved
from deploykit.contract.errors import GateError, ParityError, PerformanceError, PlacementError
from deploykit.contract.precision import Evidence, Precision
from deploykit.judge.parity import ParityReport, Tolerance, failures_of
from deploykit.judge.profiling import Profile
from deploykit.pipeline.placement import placement_miss
from deploykit.plugin.artifact import Artifact

_SAME_DB = 1.0
"""An artifact within this of its simulation computes the same: what differs from the model is the quantisation."""


@dataclass(frozen=True)
class Miss:
    """A missed gate, and the error to raise once the candidate has been written."""

    message: str
    error: Callable[[Artifact], GateError]


@dataclass(frozen=True)
class Gates:
    """What an artifact must reach.

    Attributes:
        precision: requested.
        tolerance: parity gate.
        min_placement: share of multiply-accumulates in the requested precision, and in the runtime's accelerated part
            where it has one; None for the default of the precision, see `_placement`.
        min_speedup: float latency over own latency, both measured on the device.
        instead: a precision of this target and device that loses less; None where there is none.
        reaches_further: one that more kinds of layers have; None where there is none.
        searched: whether a search has ended in this miss, so that another is no advice.
        mixed: whether that search kept layers in float: those that are worst may be float already.
        untried: what that search did not try because its seconds were spent.
    """

    precision: Precision = Precision.FP32
    tolerance: Tolerance = field(default_factory=Tolerance)
    min_placement: float | None = None
    min_speedup: float | None = None
    instead: Precision | None = None
    reaches_further: Precision | None = None
    searched: bool = False
    mixed: bool = False
    untried: tuple[str, ...] = ()

    def misses(self, achieved: Achieved, report: ParityReport, profile: Profile | None) -> list[Miss]:
        """The missed gates, parity first; empty where the artifact may be published as verified."""
        parity, performance = self._parity(report), self._performance(profile)
        found = (parity, *self.placement_misses(achieved), performance)
        return [miss for miss in found if miss is not None]

    def placement_misses(self, achieved: Achieved) -> list[Miss]:
        """The missed gates on what runs in the precision, and in the runtime's accelerated part."""
        return [miss for miss in (self._placement(achieved), self._delegation(achieved)) if miss is not None]

    def _parity(self, report: ParityReport) -> Miss | None:
        if report.passed:
            return None
        message = f"{self.precision} artifact misses its parity gate: {'; '.join(report.failures)}"
        culprit, hint = self._runtime_at_fault(report) or self._model_at_fault(report)
        message += culprit
        if self.untried:
            hint = f"raise budget_s=, which ended the search before {', '.join(self.untried)}; or {hint}"
        hint += f"{self._next()}; strict=False returns the candidate"
        return Miss(message, lambda artifact: ParityError(message, report=report, candidate=artifact, hint=hint))

    def _runtime_at_fault(self, report: ParityReport) -> tuple[str, str] | None:
        """What to say where the simulated graph passes and the artifact does not: no layer and no data is to blame."""
        simulated = report.quantization
        whole, gate = report.chain[-1], report.tolerance
        if simulated is None or failures_of(simulated, gate) or not failures_of(whole, gate):
            return None
        reached, promised = whole.worst.sqnr_db, simulated.worst.sqnr_db
        if reached is not None and promised is not None and reached > promised - _SAME_DB:
            return None
        reaches = "passes" if promised is None else f"reaches {promised:.1f} dB"
        culprit = f" (the simulated graph {reaches}: what differs is the runtime or the CPU,"
        culprit += f" {report.host})"
        noted = f": {'; '.join(report.notes)}" if report.notes else ""
        return culprit, f"run it on another kind of CPU or with another version of the runtime{noted}"

    def _model_at_fault(self, report: ParityReport) -> tuple[str, str]:
        """What to say where the quantised graph itself differs from the model, or nothing was simulated."""
        layers = report.worst_layers()
        worst = "; ".join(f"{layer.module_path or layer.name} {layer.sqnr_db:.1f} dB" for layer in layers)
        names = sorted({layer.module_path for layer in layers if layer.module_path})
        if self.precision.row.is_whole:  # nothing to exclude
            return "", "see artifact.parity for the outputs that differ"
        hint = self._other_samples_at_fault(report)
        if hint is None and self.mixed:
            hint = "lower the goal (the layers that gain most are in float already), or train the model"
            hint += ", or use more or better calibration data" if self.precision.is_static else ""
        elif hint is None:
            hint = "keep the worst layers in float" + (f" (exclude={names!r})" if names else "")
            hint += ", or use more or better calibration data" if self.precision.is_static else ""
        hint += "" if self.searched else ", or let deploykit.tune look for a model that passes"
        return f" (worst layers: {worst})" if worst else "", hint

    def _other_samples_at_fault(self, report: ParityReport) -> str | None:
        """What to do where the samples that were judged pass, and others are expected not to; None elsewhere.

        The worst layers of the samples that pass have no part in that: what leaves its range on others may be anywhere.
        """
        whole, spread = report.chain[-1], report.spread
        missed = failures_of(whole, report.tolerance, of_others=True)
        if not self.precision.is_static or spread is None or failures_of(whole, report.tolerance) or not missed:
            return None
        noted = f" ({'; '.join(report.notes)})" if report.notes else ""
        return (
            f"calibrate on more samples, of what the model meets in use: the {spread.samples} that were judged pass,"
            f" others are expected not to{noted}"
        )

    def _placement(self, achieved: Achieved) -> Miss | None:
        found = placement_miss(self.precision, achieved, self.min_placement, self.reaches_further)
        if found is None:
            return None
        error = partial(PlacementError, found.message, hint=found.hint)
        return Miss(found.message, lambda artifact: error(candidate=artifact))

    def _next(self) -> str:
        return f', or precision="{self.instead}"' if self.instead else ""

    def _delegation(self, achieved: Achieved) -> Miss | None:
        found = achieved.delegation
        if self.min_placement is None or found is None or found.macs_fraction >= self.min_placement:
            return None
        message = (
            f"{found.name} takes {found.macs_fraction:.1%} of multiply-accumulates; "
            f"{self.min_placement:.1%} were asked for ({found})"
        )
        hint = "write those parts with other operators, ask for another precision, or lower min_placement"
        hint += "; strict=False returns the candidate"
        return Miss(message, lambda artifact: PlacementError(message, candidate=artifact, hint=hint))

    def _performance(self, profile: Profile | None) -> Miss | None:
        if self.min_speedup is None:
            return None
        if profile is None or profile.evidence is not Evidence.DEVICE:
            return self._unknown_speed(profile)
        if profile.worth_it is not None and profile.worth_it >= self.min_speedup:
            return None
        got = "not measurable" if profile.worth_it is None else f"{profile.worth_it:.2f} x"
        message = f"{self.precision} is {got} as fast as the float build; {self.min_speedup:.2f} x was asked for"
        hint = "keep fp32 or fp16 for this model on this target, or lower min_speedup"
        return Miss(message, lambda artifact: PerformanceError(message, candidate=artifact, hint=hint))

    def _unknown_speed(self, profile: Profile | None) -> Miss:
        """Nothing was measured on the device."""
        known = ""
        if profile is not None and profile.worth_it is not None:
            known = f" (evidence `{profile.evidence}`: {profile.worth_it:.2f} x)"
        message = f"{self.min_speedup:.2f} x the speed of the float build was asked for, and nothing was measured on"
        message += f" the device, where alone it is known{known}"
        hint = "export without min_speedup, and so an fp32 artifact too; on the device `deploykit profile ARTIFACT"
        hint += " --baseline FP32-ARTIFACT` measures both in turns, after `deploykit build` of each that needs it"
        return Miss(message, lambda artifact: PerformanceError(message, candidate=artifact, hint=hint))
