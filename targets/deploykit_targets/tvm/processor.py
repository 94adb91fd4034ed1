"""Which processor a device has, as TVM's target and as the kernels' instruction set. Data of `devices.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.devices import Device
from deploykit.errors import DeviceError
from deploykit.host import this_host

_HOST_ISAS = (("avx512_vnni", ("avx512_vnni", "avx512bw")), ("avx2", ("avx2", "fma")))
"""Best first: the kernels' name, and what `deploykit.host` calls the features."""


@dataclass(frozen=True)
class Processor:
    """What is compiled for.

    Attributes:
        isa: name of the kernels' instruction set (`kernels.isa.ISAS`).
        mcpu: LLVM's name of the processor.
        mattr: features that LLVM is told to use or not to use (`+dotprod`).
        triple: of LLVM.
    """

    isa: str
    mcpu: str
    mattr: tuple[str, ...]
    triple: str

    @property
    def arch(self) -> str:
        """As `platform.machine()` has it: `x86_64` or `aarch64`."""
        return self.triple.partition("-")[0]

    @property
    def target(self) -> dict[str, Any]:
        """The fields of `tvm.target.Target`."""
        keys = ["arm_cpu", "cpu"] if self.arch == "aarch64" else ["cpu"]
        fields = {"kind": "llvm", "keys": keys, "mtriple": self.triple, "mcpu": self.mcpu}
        return {**fields, "mattr": list(self.mattr)}

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Processor:
        """From a device table or a manifest."""
        return cls(fields["isa"], fields["mcpu"], tuple(fields["mattr"]), fields["triple"])


def processor_of(device: Device) -> Processor:
    """What to compile for.

    Raises:
        DeviceError: the device takes its instruction set from this machine, which has none that kernels exist for.
    """
    if device.extra["isa"] != "host":
        return Processor.read(device.extra)
    host = this_host()
    for isa, features in _HOST_ISAS:
        if all(map(host.has, features)):
            return Processor.read({**device.extra, "isa": isa, "mcpu": device.extra["mcpu_by_isa"][isa]})
    raise DeviceError(
        f"{device.name} is compiled for this machine, and {host} has neither of {', '.join(n for n, _ in _HOST_ISAS)}",
        hint="export on a machine with AVX2, or choose another device",
    )
