"""The TensorRT for RTX plugin: capabilities, options, and the hooks that its siblings in this folder fill.

NVIDIA's compiler for RTX GPUs needs no GPU. So an export holds the ONNX file and the engine that was compiled of it
here, for one architecture or several; `deploykit build` finishes it on the GPU (its last kernels are made there, and
kept), proves it on the golden data and measures it; all at once where the device is here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.errors import UsageError
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.request import of_precisions
from deploykit.contract.requirements import Requirements
from deploykit.plugin.target import Capabilities, Payload
from deploykit_targets._on_device.target import check_shapes
from deploykit_targets._tensorrt.requirements import ARCHITECTURES, BINDINGS, LIBRARIES, OF_THE_EXPORT
from deploykit_targets._tensorrt.target import EXPORT_REQUIRES, NvidiaTarget
from deploykit_targets.tensorrt_rtx import session

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit_calibration.prepared import Prepared

_BLOCKS = (32, 64, 128)
_TURING = "sm_75"
"""An engine for it and newer GPUs computes in what Turing has, which is little; NVIDIA advises against such engines."""


@dataclass(frozen=True)
class TensorRtRtxOptions:
    """Options of the TensorRT for RTX toolchain; the first two are of the export, the others can be changed by a build.

    Attributes:
        compute_capabilities: GPU architectures beside the device's own that the same engine is compiled for, such as
            `["sm_86", "sm_120"]`; what all of them have is used. Turing (sm_75) shares an engine with none.
        block_size: weights that share a scale in int4-weight-only: 32, 64 or 128.
        max_batch: largest batch of a dynamic batch axis whose largest size `dynamic_shapes` does not give.
        shapes: `NAME=MIN:OPT:MAX` for inputs with dynamic axes, such as `ids=1x8:1x64:1x512`; by default the bounds
            that `dynamic_shapes` gave, around the example.
    """

    compute_capabilities: tuple[str, ...] = ()
    block_size: Literal[32, 64, 128] = of_precisions(128, Precision.INT4_WEIGHT_ONLY)
    max_batch: int = 8
    shapes: tuple[str, ...] = ()


class TensorRtRtxTarget(NvidiaTarget):
    """NVIDIA RTX GPUs through TensorRT for RTX."""

    name: ClassVar[str] = "tensorrt-rtx"
    options_type: ClassVar[type[TensorRtRtxOptions]] = TensorRtRtxOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="NVIDIA RTX GPUs through TensorRT for RTX; its compiler needs no GPU",
            precisions=(
                Precision.INT8,
                Precision.FP16,
                Precision.MIXED,
                Precision.BF16,
                Precision.FP8,
                Precision.INT8_WEIGHT_ONLY,
                Precision.INT4_WEIGHT_ONLY,
                Precision.FP32,
            ),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="tensorrt-rtx",
            runtime_extra="tensorrt-rtx-runtime",
            export_requires=EXPORT_REQUIRES,
            runtime_requires=(LIBRARIES, BINDINGS),
            evidence=Evidence.REFERENCE,
            compile_extra="tensorrt-rtx",
            compile_requires=(LIBRARIES, BINDINGS),
        )

    def check_options(self, options: Any, device: Device) -> None:
        """See `Target.check_options`: against the architectures that the compiler has."""
        super().check_options(options, device)
        if options.block_size not in _BLOCKS:
            raise UsageError(f"block_size={options.block_size}: it is one of {', '.join(map(str, _BLOCKS))}")
        for arch in options.compute_capabilities:
            if arch not in ARCHITECTURES:
                allowed = f"TensorRT for RTX compiles for {', '.join(ARCHITECTURES)}"
                raise UsageError(f"compute_capabilities: {arch!r} is not an architecture that it has", hint=allowed)
        others = {device.arch, *options.compute_capabilities} - {_TURING}
        if others and _TURING in (device.arch, *options.compute_capabilities):
            message = f"compute_capabilities: Turing ({_TURING}) shares no engine with {', '.join(sorted(others))}"
            raise UsageError(message, hint="export once for a Turing device (rtx-2080), and once for the others")

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`; the engine is of the version that compiled it, and finished by the same."""
        needs = super().requirements(device, precision)
        return replace(needs, packages={BINDINGS.project: ""})

    def interpreter(self, artifact: StoredArtifact | None = None) -> str | None:
        """See `BuiltOnDevice.interpreter`."""
        return session.interpreter()

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.tensorrt_rtx.scheme import scheme_of

        return scheme_of(request, captured)

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        check_shapes(prepared.options.shapes, prepared.captured.inputs)
        self._check_types(prepared)
        from deploykit_targets.tensorrt_rtx.convert import convert

        return convert(prepared, folder)

    def _check_types(self, prepared: Prepared) -> None:
        """Refuse an engine for GPUs of which one lacks the precision."""
        for device in self.capabilities().devices.values():
            if device.arch in prepared.options.compute_capabilities and prepared.precision not in device.precisions:
                message = f"compute_capabilities: {device.arch} has no {prepared.precision}"
                raise UsageError(message, hint=f"leave {device.arch} out, and export once more for {device.name}")

    def _build_here(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload:
        exported = self.parse_options(artifact.manifest.options)
        for name in OF_THE_EXPORT:
            if getattr(options, name) != getattr(exported, name):
                message = f"{name} is of the export, and this artifact has {getattr(exported, name)!r}"
                raise UsageError(message, hint=f"export the model again with it, or leave {name} out")
        from deploykit_targets._tensorrt.build import build_engine_of
        from deploykit_targets.tensorrt_rtx.convert import needing_the_bindings

        return needing_the_bindings(build_engine_of(artifact, folder, options, self.interpreter()))
