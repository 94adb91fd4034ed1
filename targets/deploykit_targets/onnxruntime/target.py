"""The ONNX Runtime plugin: capabilities, options, and the hooks that its siblings in this folder fill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deploykit._optional import Requirement
from deploykit.devices import load_devices
from deploykit.precision import Precision
from deploykit.target import Capabilities, Conversion, ConversionJob, Target

if TYPE_CHECKING:
    from deploykit.artifact import Artifact
    from deploykit.session import Session


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """Options of the ONNX Runtime toolchain.

    Attributes:
        opset: version of the ONNX operator set, 18 to 22.
        block_size: weights that share one scale in weight-only precisions; a power of two from 16.
    """

    opset: int = 21
    block_size: int = 32


class OnnxRuntimeTarget(Target):
    """x86 CPUs through ONNX Runtime."""

    name: ClassVar[str] = "onnxruntime"
    options_type: ClassVar[type[OnnxRuntimeOptions]] = OnnxRuntimeOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="x86 CPUs through ONNX Runtime",
            precisions=(
                Precision.INT8,
                Precision.FP32,
                Precision.FP16,
                Precision.INT8_DYNAMIC,
                Precision.INT8_WEIGHT_ONLY,
                Precision.INT4_WEIGHT_ONLY,
            ),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="onnxruntime",
            runtime_extra="onnxruntime-runtime",
            export_requires=(Requirement("torch"), Requirement("onnx"), Requirement("onnxruntime")),
            runtime_requires=(Requirement("onnxruntime"),),
        )

    def _convert(self, job: ConversionJob) -> Conversion:
        from deploykit_targets.onnxruntime.convert import convert

        return convert(job)

    def _open(self, artifact: Artifact, threads: int) -> Session:
        from deploykit_targets.onnxruntime.session import OnnxRuntimeSession

        return OnnxRuntimeSession(artifact, threads)
