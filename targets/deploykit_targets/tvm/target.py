"""The TVM plugin: capabilities and conversion; `running.py` has what runs artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deploykit.contract.devices import load_devices
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Capabilities, Payload
from deploykit_targets.tvm.running import RunsCompiled
from deploykit_targets.tvm.tools import compiler_for, system_tools

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.devices import Device
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit_calibration.prepared import Prepared


class TvmTarget(RunsCompiled):
    """Arm and x86 CPUs through kernels that TVM compiles; nothing of TVM is on the device."""

    name: ClassVar[str] = "tvm"

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="Arm boards (and x86 CPUs) through integer kernels that TVM compiles ahead of time",
            precisions=(Precision.INT8, Precision.BF16, Precision.FP32),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="tvm",
            runtime_extra="tvm-runtime",
            export_requires=(Requirement("torch"), Requirement("tvm", "apache-tvm")),
            runtime_requires=(),
            dynamic_batch=False,
            system_tools=system_tools(),
        )

    def unavailable_here(self, device: Device) -> str:
        """See `Target.unavailable_here`: a C compiler for the device links the executor."""
        compiler = compiler_for("aarch64" if device.arch == "arm64" else "x86_64")
        return "" if compiler.installed else f"{compiler.install_command} (to {compiler.purpose})"

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """See `Target.adapt`: recurrent layers are unrolled."""
        del request
        from deploykit_targets.tvm.convert import adapt

        return adapt(captured)

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.tvm.scheme import scheme_of

        return scheme_of(request, captured)

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        from deploykit_targets.tvm.convert import convert

        return convert(prepared, folder)
