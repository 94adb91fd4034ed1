"""The TVM plugin: capabilities and conversion; `running.py` has what runs artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from deploykit.contract.devices import load_devices
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Capabilities, Conversion, ConversionJob
from deploykit_targets.tvm.running import RunsCompiled
from deploykit_targets.tvm.tools import system_tools


class TvmTarget(RunsCompiled):
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

    def _convert(self, job: ConversionJob) -> Conversion:
        from deploykit_targets.tvm.convert import convert

        return convert(job)
