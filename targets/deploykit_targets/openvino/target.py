"""The OpenVINO plugin: capabilities, and the hooks that its siblings in this folder fill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deploykit._optional import Requirement
from deploykit.devices import load_devices
from deploykit.precision import Precision
from deploykit.target import Capabilities, Conversion, ConversionJob, Target

if TYPE_CHECKING:
    from deploykit.artifact import Artifact
    from deploykit.session import Session


class OpenVinoTarget(Target):
    """x86 CPUs through OpenVINO."""

    name: ClassVar[str] = "openvino"

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="x86 CPUs through OpenVINO",
            precisions=(Precision.INT8, Precision.FP32, Precision.BF16, Precision.FP16),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="openvino",
            runtime_extra="openvino-runtime",
            export_requires=(Requirement("torch"), Requirement("onnx"), Requirement("openvino")),
            runtime_requires=(Requirement("openvino"),),
        )

    def _convert(self, job: ConversionJob) -> Conversion:
        from deploykit_targets.openvino.convert import convert

        return convert(job)

    def _open(self, artifact: Artifact, threads: int) -> Session:
        from deploykit_targets.openvino.session import OpenVinoSession

        return OpenVinoSession(artifact, threads)
