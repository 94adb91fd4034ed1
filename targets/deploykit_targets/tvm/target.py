"""The TVM plugin: capabilities, and the hooks that its siblings in this folder fill."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deploykit._optional import Requirement
from deploykit.devices import load_devices
from deploykit.precision import Evidence, Precision
from deploykit.target import Capabilities, Conversion, ConversionJob, Target
from deploykit_targets.tvm.tools import system_tools

if TYPE_CHECKING:
    from deploykit.artifact import Artifact
    from deploykit.session import Session

_ARCHITECTURES = {"x86_64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}


class TvmTarget(Target):
    """Arm and x86 CPUs through kernels that TVM compiles; nothing of TVM is on the device."""

    name: ClassVar[str] = "tvm"

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="Arm boards (and x86 CPUs) through integer kernels that TVM compiles ahead of time",
            precisions=(Precision.INT8, Precision.FP32),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="tvm",
            runtime_extra="tvm-runtime",
            export_requires=(Requirement("torch"), Requirement("tvm", "apache-tvm")),
            runtime_requires=(),
            dynamic_batch=False,
            system_tools=system_tools(),
        )

    def evidence(self, artifact: Artifact) -> Evidence:
        """`device` where the processor is of the device's kind, else the emulated CPU."""
        device = self.capabilities().devices.get(artifact.manifest.device)
        own = _ARCHITECTURES.get(platform.machine().lower(), "")
        return Evidence.DEVICE if device is not None and device.arch == own else Evidence.EMULATOR

    def _convert(self, job: ConversionJob) -> Conversion:
        from deploykit_targets.tvm.convert import convert

        return convert(job)

    def _open(self, artifact: Artifact, threads: int) -> Session:
        from deploykit_targets.tvm.session import open_session

        return open_session(artifact, threads)
