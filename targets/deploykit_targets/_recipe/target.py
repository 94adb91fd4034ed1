"""`BuiltOnDevice`: what toolchains share whose artifacts are finished on the GPU that runs them.

Before the build, parity comes from ONNX Runtime on the CPU (`reference`) and the profile from the device table
(`estimate`), and both say so; after it, both come from the device.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from deploykit.estimate import estimate
from deploykit.precision import Evidence, Precision
from deploykit.profiling import DEFAULT_EFFORT, Effort, Profile
from deploykit.target import Target, Validation

if TYPE_CHECKING:
    from deploykit.artifact import Artifact
    from deploykit.parity import ParityReport
    from deploykit.session import Session

UNBUILT_NOTE = "statically checked and numerically referenced, not compiled or run on the device"


class BuiltOnDevice(Target):
    """Base of such toolchains.

    Attributes:
        program: file name of the recipe in an artifact.
    """

    program: ClassVar[str]

    @abstractmethod
    def interpreter(self) -> str | None:
        """A Python on this machine that has the vendor's bindings; None where there is none."""

    def check_installed(self, *, export: bool) -> None:
        """See `Target.check_installed`; boards have the bindings in the system's Python, which counts too."""
        if export or self.interpreter() is None:
            super().check_installed(export=export)

    def evidence(self, artifact: Artifact) -> Evidence:
        """A built artifact runs on its device; another one only in a reference runtime."""
        return Evidence.REFERENCE if artifact.manifest.build else Evidence.DEVICE

    def open_for_parity(self, artifact: Artifact) -> Session:
        """The built program where there is one; else the exact ONNX file in ONNX Runtime on the CPU."""
        if artifact.manifest.build is None:
            return self.open(artifact)
        from deploykit_targets._onnx.reference import ReferenceSession, reference_model

        model = reference_model(artifact.entry, bfloat16=artifact.manifest.precision is Precision.BF16)
        return ReferenceSession(artifact.inputs, artifact.outputs, model)

    def validate(self, artifact: Artifact, validation: Validation) -> ParityReport:
        """See `Target.validate`; before the build, the report says what it does not prove."""
        report = super().validate(artifact, validation)
        if artifact.manifest.build is None:
            return report
        return replace(report, notes=(*report.notes, UNBUILT_NOTE, artifact.manifest.metadata["lint"]["verdict"]))

    def profile(
        self, artifact: Artifact, *, baseline: tuple[str, Artifact] | None = None, effort: Effort = DEFAULT_EFFORT
    ) -> Profile:
        """Measured on the device where the program is built; else a roofline estimate from the device table."""
        if artifact.manifest.build is not None:
            return estimate(artifact, self.capabilities().devices[artifact.manifest.device], baseline=baseline)
        from deploykit_targets._recipe.session import measure

        return measure(artifact, self.program, self.interpreter(), effort, baseline)

    def _open(self, artifact: Artifact, threads: int) -> Session:
        from deploykit_targets._recipe.session import RecipeSession

        return RecipeSession(artifact, self.program, self.interpreter())
