"""What is proved of a toolchain's artifacts: parity, profile, and the evidence level of both.

Written once over `Session`, for every toolchain; evidence is never `device` where this machine lacks what the device
has, and a speed under emulation is never a measurement.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.cpuid import emulator
from deploykit.contract.host import ARCHITECTURES
from deploykit.contract.precision import Evidence
from deploykit.contract.requirements import lacking
from deploykit.contract.session import Session
from deploykit.judge.parity import ParityReport
from deploykit.judge.profiling import DEFAULT_EFFORT, Baseline, Effort, Measuring, Profile, measure
from deploykit.judge.verdict import Validation, judge
from deploykit.places.memory import peak_memory_bytes
from deploykit.plugin.estimate import estimate
from deploykit.plugin.opens import Opens

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact


class Proves(Opens):
    """The part of a `Target` that compares and measures artifacts."""

    def open_for_parity(self, artifact: StoredArtifact) -> Session:
        """The session that parity and golden data are taken from.

        The artifact's own runtime by default, on one thread: results are then the same on every machine, and idle
        threads do not spin against PyTorch, which runs beside it. A toolchain whose runtime cannot be here overrides
        this with another runtime over the same payload, and `evidence` with `reference`.
        """
        return self.open(artifact, threads=1)

    def validate(self, artifact: StoredArtifact, validation: Validation, session: Session) -> ParityReport:
        """Compare float model, simulated graph and artifact on the samples, and judge.

        Args:
            session: the session of `open_for_parity`, which golden data and the task metric are taken from, too.
        """
        report = judge(session, self.evidence(artifact), validation)
        return replace(report, notes=(*report.notes, *self.notes_on_evidence(artifact)))

    def profile(
        self,
        artifact: StoredArtifact,
        *,
        baseline: tuple[str, StoredArtifact] | None = None,
        effort: Effort = DEFAULT_EFFORT,
    ) -> Profile:
        """Measure an artifact on its golden inputs, in turns with a float build where given.

        Where running it here means emulation, whose speed says nothing, it is an estimate from the device table.

        Args:
            baseline: what to call it, and the float build.
        Raises:
            DeviceError: neither is possible: under emulation, and the table has no rates.
        """
        if self.evidence(artifact) is Evidence.EMULATOR:
            return estimate(artifact, self.capabilities().devices[artifact.manifest.device], baseline=baseline)
        self.check_vouched(artifact)  # before its memory is measured, in a process that asks nobody
        feeds = artifact.golden().inputs[0]
        here, host = self.place(artifact).is_here, self.host_of(artifact)
        memory = peak_memory_bytes(artifact) if here else None
        note = () if here else (f"measured on {self.place(artifact)} with its own clock, without what lies between",)
        if here and emulator():
            note = (f"this process runs under {emulator()}: its times say nothing of the CPU that it plays",)
        measuring = Measuring(artifact.size_bytes, self.evidence(artifact), memory, effort, host, note)
        with self.open(artifact, threads=effort.threads) as session:
            if baseline is None:
                return measure(session, feeds, measuring)
            with self.open(baseline[1], threads=effort.threads) as other:
                return measure(session, feeds, measuring, Baseline(baseline[0], other, baseline[1].size_bytes))

    def evidence(self, artifact: StoredArtifact) -> Evidence:
        """Evidence level of running `artifact` here; override where something else than this machine runs it.

        Never `device` where this machine lacks what the device has, or computes otherwise without it.
        """
        place = self.place(artifact)
        if place.is_emulated:
            return Evidence.EMULATOR
        told = place.evidence(artifact, self.wants(artifact))
        if told is not None:
            return told
        best = self.capabilities().evidence
        short = best is Evidence.DEVICE and (self._lacking(artifact) or not self.preflight(artifact).native)
        return Evidence.REFERENCE if short else best

    def notes_on_evidence(self, artifact: StoredArtifact) -> tuple[str, ...]:
        """Why running `artifact` here is not what its device would do, or is done otherwise; empty where it is."""
        found = self.preflight(artifact)
        lacks = self._lacking(artifact)
        device = artifact.manifest.device
        own = (f"evidence is not `device`: {device} has {', '.join(lacks)}, this machine does not",) if lacks else ()
        return (*own, *found.adapted, *found.notes)

    def _lacking(self, artifact: StoredArtifact) -> tuple[str, ...]:
        """What the device of `artifact` has and this machine lacks: its architecture, or instruction sets."""
        device, host = self.capabilities().devices.get(artifact.manifest.device), self.host_of(artifact)
        if device is None:
            return ()
        if device.arch in ARCHITECTURES and host.family != device.arch:
            return (device.arch,)
        return lacking(device.features, host)
