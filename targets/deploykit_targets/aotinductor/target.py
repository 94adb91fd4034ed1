"""The AOTInductor plugin: PyTorch's own compiler, ahead of time, into a package of native code.

For machines that have an NVIDIA GPU but no TensorRT, for CPUs with AMX, and to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.errors import UsageError
from deploykit.contract.host import this_host
from deploykit.contract.optional import Requirement, SystemTool
from deploykit.contract.precision import Precision
from deploykit.contract.requirements import Requirements
from deploykit.places.first import Risk
from deploykit.plugin.target import Capabilities, Payload, Target

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit.contract.session import Session
    from deploykit_calibration.prepared import Prepared


@dataclass(frozen=True)
class AotInductorOptions:
    """Options of the AOTInductor toolchain.

    Attributes:
        max_autotune: try several kernels for each product and convolution; compiles for much longer.
        runtime: `package` is native code, compiled at export; `compile` keeps the program, which `torch.compile` and,
            on a GPU, one CUDA graph make fast when it is opened: for machines whose PyTorch cannot load packages.
    """

    max_autotune: bool = False
    runtime: Literal["package", "compile"] = "package"


class AotInductorTarget(Target):
    """CPUs and NVIDIA GPUs through PyTorch's AOTInductor."""

    name: ClassVar[str] = "aotinductor"
    options_type: ClassVar[type[AotInductorOptions]] = AotInductorOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="CPUs and NVIDIA GPUs through PyTorch's AOTInductor",
            precisions=(Precision.INT8, Precision.FP32, Precision.FP16, Precision.BF16),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="aotinductor",
            runtime_extra="aotinductor",
            export_requires=(Requirement("torch"),),
            runtime_requires=(Requirement("torch"),),
            system_tools=(SystemTool("g++", "g++", "compile the generated code"),),
        )

    def unavailable_here(self, device: Device) -> str:
        """See `Target.unavailable_here`: it compiles on the machine that it compiles for."""
        if device.arch.startswith("sm_"):
            here = any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/dxg"))
            return (
                ""
                if here
                else f"it compiles on the GPU that it compiles for, and there is none: export on {device.name}"
            )
        same = device.arch.replace("-", "_") == this_host().arch
        return "" if same else f"it compiles on the CPU that it compiles for, and this one is {this_host().arch}"

    def check_options(self, options: Any, device: Device) -> None:
        """See `Target.check_options`."""
        if options.runtime not in ("package", "compile"):
            raise UsageError(f"runtime={options.runtime!r}: it is package or compile")

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`; the instruction sets are those of the machine that compiled."""
        gpu = device.arch if device.arch.startswith("sm_") else ""
        return Requirements(arch=() if gpu else (device.arch,), gpu=gpu, packages={"torch": ""})

    def needs(self, artifact: StoredArtifact) -> Requirements:
        """See `Target.needs`; older versions recorded what was compiled for as words."""
        needs, compiled = super().needs(artifact), str(artifact.manifest.metadata.get("compiled_for", ""))
        if artifact.manifest.requirements is not None or needs.gpu:
            return needs
        return replace(needs, isa=tuple(compiled.split()[1:]))

    def risk(self, artifact: StoredArtifact) -> Risk:
        """See `Target.risk`: a package is a library, and PyTorch's loader has been seen to crash on a GPU machine."""
        return Risk.NONE if artifact.manifest.options.get("runtime") == "compile" else Risk.CODE

    def native_code(self, artifact: StoredArtifact) -> str:
        """See `Target.native_code`: of `compile`, PyTorch's loader may unpickle what is in the program."""
        if artifact.manifest.options.get("runtime") == "compile":
            return f"the program in {artifact.manifest.entry}, in PyTorch's loader and compiler"
        return super().native_code(artifact)

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """See `Target.adapt`: recurrent layers are written out where they are quantized."""
        from deploykit_targets._schemes.recurrent import written_out

        return written_out(captured, request)

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.aotinductor.scheme import scheme_of

        return scheme_of(request, captured)

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        from deploykit_targets.aotinductor.convert import convert

        converted, needs, host = (
            convert(prepared, folder),
            self.requirements(prepared.device, prepared.precision),
            this_host(),
        )
        major, minor = converted.tool_versions["torch"].split(".")[:2]  # a package is tied to PyTorch's own library
        packages = {"torch": f"=={major}.{minor}.*"}
        return replace(
            converted, requirements=replace(needs, packages=packages, os=(host.os,), isa=() if needs.gpu else host.isa)
        )

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        if artifact.manifest.options.get("runtime") == "compile":
            from deploykit_targets.aotinductor.program import ProgramSession

            return ProgramSession(artifact, threads)
        from deploykit_targets.aotinductor.session import PackageSession

        return PackageSession(artifact, threads)
