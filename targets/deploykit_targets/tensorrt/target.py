"""The TensorRT plugin: capabilities, options, and the hooks that its siblings in this folder fill.

TensorRT builds engines only on the GPU they run on. So an export makes a portable artifact here, checked statically
and by reference numerics, and `deploykit build` makes the engine on the device; both at once where the device is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deploykit._optional import Requirement
from deploykit.devices import load_devices
from deploykit.precision import Evidence, Precision
from deploykit.target import Capabilities, Conversion, ConversionJob
from deploykit_targets._recipe.target import BuiltOnDevice
from deploykit_targets.tensorrt import session

if TYPE_CHECKING:
    from deploykit.artifact import Artifact


@dataclass(frozen=True)
class TensorRtOptions:
    """Options of the TensorRT toolchain; all of them are of the build on the device, and can be changed there.

    Attributes:
        workspace_mib: memory that the builder's kernels may use, in MiB; None for all.
        optimization_level: 0 (quick build) to 5 (slow build); None for TensorRT's default.
        dla: core of the deep-learning accelerator to build for; None for the GPU.
        gpu_fallback: layers that the DLA cannot run go to the GPU; else they fail the build.
        version_compatible: the engine may be run by later TensorRT versions of the same major version.
        hardware: `none`, `ampere+` (every GPU from Ampere on) or `same-sm` (every GPU of the same architecture).
        max_batch: largest batch of a dynamic batch axis.
        shapes: `NAME=MIN:OPT:MAX` for inputs with other dynamic axes, such as `ids=1x8:1x64:1x512`.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    dla: int | None = None
    gpu_fallback: bool = True
    version_compatible: bool = False
    hardware: Literal["none", "ampere+", "same-sm"] = "none"
    max_batch: int = 8
    shapes: tuple[str, ...] = ()


class TensorRtTarget(BuiltOnDevice):
    """NVIDIA GPUs and Jetson boards through TensorRT."""

    name: ClassVar[str] = "tensorrt"
    program: ClassVar[str] = session.PROGRAM
    options_type: ClassVar[type[TensorRtOptions]] = TensorRtOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="NVIDIA GPUs and Jetson boards through TensorRT",
            precisions=(
                Precision.INT8,
                Precision.FP16,
                Precision.MIXED,
                Precision.BF16,
                Precision.FP8,
                Precision.FP32,
            ),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="tensorrt",
            runtime_extra="tensorrt-build",
            export_requires=(Requirement("torch"), Requirement("onnx"), Requirement("onnxruntime")),
            runtime_requires=(Requirement("tensorrt"),),
            evidence=Evidence.REFERENCE,
        )

    def interpreter(self) -> str | None:
        """See `BuiltOnDevice.interpreter`."""
        return session.interpreter()

    def _convert(self, job: ConversionJob) -> Conversion:
        from deploykit_targets.tensorrt.convert import convert

        return convert(job)

    def _build(self, artifact: Artifact, folder: Path, options: Any) -> Conversion:
        from deploykit_targets.tensorrt.convert import build

        return build(artifact, folder, options)
