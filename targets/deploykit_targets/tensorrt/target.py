"""The TensorRT plugin: capabilities, options, and the hooks that its siblings in this folder fill.

TensorRT builds engines only on the GPU they run on. So an export makes a portable artifact here, checked statically
and by reference numerics, and `deploykit build` makes the engine on the device; both at once where the device is here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.errors import UsageError
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.requirements import Requirements
from deploykit.plugin.target import Capabilities, Payload
from deploykit_targets._on_device.target import at_least_1, check_shapes
from deploykit_targets._tensorrt.requirements import BINDINGS, EXTRA, LIBRARIES
from deploykit_targets._tensorrt.target import EXPORT_REQUIRES, NvidiaTarget
from deploykit_targets.tensorrt import session

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit_calibration.prepared import Prepared

_HIGHEST_LEVEL = 5
_HARDWARE = ("none", "ampere+", "same-sm")
_AMPERE = 80
"""NVIDIA's developer guide, "Hardware Compatibility": Ampere and later, and neither on DRIVE OS nor on JetPack."""
# The first TensorRT (major, minor) that has an option: recordings of the bindings (tests/targets/_tensorrt/api_surface)
# and NVIDIA's release notes of 8.6. same-sm is absent from 10.3 and present in 10.16: it is refused where it is known
# to be absent, and the build program looks at the real bindings.
_SINCE = {
    "optimization_level": (8, 6),
    "version_compatible": (8, 6),
    "hardware=ampere+": (8, 6),
    "hardware=same-sm": (10, 4),
}


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
        max_batch: largest batch of a dynamic batch axis whose largest size `dynamic_shapes` does not give.
        shapes: `NAME=MIN:OPT:MAX` for inputs with dynamic axes, such as `ids=1x8:1x64:1x512`; by default the bounds
            that `dynamic_shapes` gave, around the example.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    dla: int | None = None
    gpu_fallback: bool = True
    version_compatible: bool = False
    hardware: Literal["none", "ampere+", "same-sm"] = "none"
    max_batch: int = 8
    shapes: tuple[str, ...] = ()


class TensorRtTarget(NvidiaTarget):
    """NVIDIA GPUs and Jetson boards through TensorRT."""

    name: ClassVar[str] = "tensorrt"
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
            export_requires=EXPORT_REQUIRES,
            runtime_requires=(Requirement("tensorrt"),),
            evidence=Evidence.REFERENCE,
            compile_extra=EXTRA,
            compile_requires=(LIBRARIES, BINDINGS),
        )

    def check_options(self, options: Any, device: Device) -> None:
        """See `Target.check_options`: against what the device's silicon and its TensorRT have."""
        super().check_options(options, device)
        at_least_1("workspace_mib", options.workspace_mib)
        _check_level(options.optimization_level)
        _check_dla(options.dla, device, gpu_fallback=options.gpu_fallback)
        _check_hardware(options.hardware, device)
        _check_version(options, device)

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`: the file is written for the TensorRT that the device is served by."""
        from deploykit_targets.tensorrt.scheme import opset_of

        needs, version = super().requirements(device, precision), device.extra["tensorrt"]
        return replace(needs, packages={"tensorrt": f">={version}"}, opset={"ai.onnx": opset_of(device)})

    def interpreter(self, artifact: StoredArtifact | None = None) -> str | None:
        """See `BuiltOnDevice.interpreter`."""
        return session.interpreter()

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.tensorrt.scheme import scheme_of

        return scheme_of(request, captured)

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        check_shapes(prepared.options.shapes, prepared.captured.inputs)
        from deploykit_targets.tensorrt.convert import convert

        return convert(prepared, folder)

    def _build_here(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload:
        from deploykit_targets._tensorrt.build import build_engine_of

        return build_engine_of(artifact, folder, options, self.interpreter())


def _check_level(level: int | None) -> None:
    if level is not None and not 0 <= level <= _HIGHEST_LEVEL:
        raise UsageError(f"optimization_level={level}: it is from 0 (quick build) to {_HIGHEST_LEVEL} (slow build)")


def _check_dla(core: int | None, device: Device, *, gpu_fallback: bool) -> None:
    if core is None:
        if not gpu_fallback:
            message = "gpu_fallback=false has no effect: the GPU runs every layer, for no DLA core is named"
            raise UsageError(message, hint="name a core, dla=0, or leave gpu_fallback out")
        return
    cores = int(device.extra.get("dla_cores", 0))
    if not cores:
        raise UsageError(f"dla={core}: {device.name} has no DLA", hint="leave dla out: the GPU runs the model")
    if not 0 <= core < cores:
        allowed = " or ".join(f"dla={index}" for index in range(cores))
        raise UsageError(f"dla={core}: {device.name} has {cores} DLA cores", hint=allowed)


def _check_hardware(hardware: str, device: Device) -> None:
    if hardware not in _HARDWARE:
        raise UsageError(f"hardware={hardware!r}: it is one of {', '.join(_HARDWARE)}")
    if hardware != "ampere+":
        return
    if int(device.arch.removeprefix("sm_")) < _AMPERE:
        message = f"hardware=ampere+: {device.name} ({device.arch}) is older than Ampere (sm_{_AMPERE})"
        raise UsageError(message, hint=_allowed_hardware(device))
    if "jetpack" in device.extra:
        message = f"hardware=ampere+: {device.name} runs JetPack, where TensorRT has no such engines"
        raise UsageError(message, hint=_allowed_hardware(device))


def _check_version(options: TensorRtOptions, device: Device) -> None:
    """Refuse what came after the TensorRT that the device is served by."""
    wanted = {
        "optimization_level": options.optimization_level is not None,
        "version_compatible": options.version_compatible,
        "hardware=ampere+": options.hardware == "ampere+",
        "hardware=same-sm": options.hardware == "same-sm",
    }
    for name, since in _SINCE.items():
        if wanted[name] and _tensorrt_of(device) < since:
            lacking = f"{device.name} is served by TensorRT {device.extra['tensorrt']}, which does not have it"
            hint = _allowed_hardware(device) if name.startswith("hardware") else f"leave {name} out"
            raise UsageError(f"{name}: {lacking}", hint=hint)


def _allowed_hardware(device: Device) -> str:
    ampere = int(device.arch.removeprefix("sm_")) >= _AMPERE and "jetpack" not in device.extra
    same = _tensorrt_of(device) >= _SINCE["hardware=same-sm"]
    names = ["none", *(["ampere+"] if ampere else []), *(["same-sm"] if same else [])]
    return f"allowed for {device.name}: hardware={' or hardware='.join(names)}"


def _tensorrt_of(device: Device) -> tuple[int, int]:
    major, minor = str(device.extra["tensorrt"]).split(".")[:2]
    return int(major), int(minor)
