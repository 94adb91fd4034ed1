"""Which processor a device has, as TVM's target and as the kernels' instruction set. Data of `devices.toml`."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.contract.devices import Device
from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit.contract.host import Host, this_host
from deploykit.contract.requirements import Requirements

X86_ISAS = (
    ("amx_int8", ("amx_tile", "amx_int8", "avx512_vnni", "avx512bw")),
    ("avx512_vnni", ("avx512_vnni", "avx512bw")),
    ("avx_vnni", ("avx_vnni", "avx2", "fma")),
    ("avx2", ("avx2", "fma")),
)
"""Best first: the kernels' name, and what `deploykit.contract.host` calls the features."""
ARM_ISAS = (("i8mm", ("asimddp", "i8mm")), ("sdot", ("asimddp",)), ("neon", ("asimd",)))
"""The same of Arm."""
X86_BFLOAT16 = (
    ("amx_bf16", ("amx_tile", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx512bw")),
    ("avx512_bf16", ("avx512_bf16", "avx512_vnni", "avx512bw")),
    *((name, features) for name, features in X86_ISAS if name in ("avx512_vnni", "avx2")),
)
ARM_BFLOAT16 = (
    ("neon_bf16", ("asimddp", "bf16")),
    *((name, features) for name, features in ARM_ISAS if name == "neon"),
)
"""Those of a model in bfloat16: with instructions for it, and with none, where it is widened to float32."""
_EVERY = "every"
_ISAS = {
    **dict((*X86_ISAS, *ARM_ISAS, *X86_BFLOAT16, *ARM_BFLOAT16)),
    "avx2_7bit": ("avx2", "fma"),
}
_PLAINER = {
    **dict.fromkeys(("amx_int8", "avx512_vnni", "avx_vnni"), "x86-cpu-avx2:tvm"),
    **dict.fromkeys(("sdot", "i8mm", "neon_bf16"), "arm-cpu"),
}
"""The target whose kernels need less."""

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def tiles_granted() -> bool:
    """Whether Linux keeps the tile registers of AMX for this process, which has to ask once; an x86-64 process only.

    Source: Documentation/arch/x86/xstate.rst of the kernel. A sandbox or an older kernel may refuse.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


@dataclass(frozen=True)
class Processor:
    """What is compiled for.

    Attributes:
        isa: name of the kernels' instruction set (`kernels.isa.ISAS`).
        mcpu: LLVM's name of the processor.
        mattr: features that LLVM is told to use or not to use (`+dotprod`).
        triple: the target triple of LLVM.
    """

    isa: str
    mcpu: str
    mattr: tuple[str, ...]
    triple: str

    @property
    def arch(self) -> str:
        """The architecture as `platform.machine()` has it: `x86_64` or `aarch64`."""
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


def requirements_of(isa: str, arch: str) -> Requirements:
    """What code for a kernels' instruction set needs of the machine that runs it itself.

    Args:
        isa: the instruction set of a `Processor`.
        arch: as `platform.machine()` has it.
    Raises:
        ArtifactError: no kernels are written for that instruction set.
    """
    if isa not in _ISAS:
        raise ArtifactError(f"it is compiled for the unknown instruction set {isa!r}", hint="update deploykit")
    family = Host(arch, (), 1, "Linux").family
    return Requirements(arch=(family,), os=("Linux",), isa=_ISAS[isa], instead=_PLAINER.get(isa, ""))


def processors_of(device: Device, *, bfloat16: bool = False) -> tuple[Processor, ...]:
    """What to compile for, best first: one, or for any CPU of an architecture one of each kind.

    Args:
        bfloat16: for a model in bfloat16.
    Raises:
        DeviceError: as `processor_of`.
    """
    best = processor_of(device, bfloat16=bfloat16)
    if device.extra["isa"] != _EVERY:
        return (best,)
    return tuple(_one_of(device, isa) for isa, _ in _kinds(device, bfloat16))


def _kinds(device: Device, bfloat16: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if device.arch == "x86-64":
        return X86_BFLOAT16 if bfloat16 else X86_ISAS
    return ARM_BFLOAT16 if bfloat16 else ARM_ISAS


def processor_of(device: Device, *, bfloat16: bool = False) -> Processor:
    """What to compile for; of several, what this machine would take, or the plainest of another architecture's.

    Args:
        bfloat16: for a model in bfloat16.
    Raises:
        DeviceError: it is for CPUs of this machine's architecture, of which this one has too little.
    """
    if device.extra["isa"] != _EVERY:
        own = device.extra.get("bfloat16_isa") if bfloat16 else None
        return Processor.read({**device.extra, "isa": own} if own else device.extra)
    host, kinds = this_host(), _kinds(device, bfloat16)
    if host.family != device.arch:
        return _one_of(device, kinds[-1][0])
    for isa, features in kinds:
        if all(map(host.has, features)) and (not isa.startswith("amx") or tiles_granted()):
            return _one_of(device, isa)
    raise DeviceError(
        f"{device.name} is proved on this machine, and {host} has none of {', '.join(n for n, _ in kinds)}",
        hint=f"export on a machine with {' and '.join(kinds[-1][1])}, or choose another device",
    )


def _one_of(device: Device, isa: str) -> Processor:
    return Processor.read({**device.extra, "isa": isa, **device.extra["by_isa"][isa]})
