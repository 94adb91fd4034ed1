"""What machine a figure was taken on: architecture, instruction sets, cores. Recorded with every measured figure.

An x86 CPU is asked itself (`_cpuid.py`), as the runtimes do that choose their kernels by it; others through the
operating system. Where neither can tell, the list is empty, and `knows_isa` says so: what then depends on an
instruction set takes the form that is right without it.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from deploykit.contract.cpuid import instruction_sets

# Only the instruction sets that change int8/half numerics or speed; names as the Linux kernel spells them.
_ISA_OF_INTEREST = (
    "sse4_2 avx2 fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 "
    "asimd asimdhp asimddp i8mm bf16 sve sve2"
).split()
# What device tables and runtimes call by another name, or what any of several instruction sets gives.
_ALIASES = {
    "vnni": ("avx512_vnni", "avx_vnni"),
    "dotprod": ("asimddp",),
    "fp16": ("asimdhp", "avx512_fp16"),
    "neon": ("asimd",),
}
_FAMILIES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}
ARCHITECTURES = frozenset(_FAMILIES.values())
"""Processor architectures in the spelling of device tables."""
# NumPy's names, for systems without /proc/cpuinfo.
_NUMPY = {"ASIMD": "asimd", "ASIMDHP": "asimdhp", "ASIMDDP": "asimddp", "SVE": "sve", "AVX2": "avx2", "FMA3": "fma"}
_KINDS = {"amx_int8": "AVX-512 and AMX", "avx512bw": "AVX-512", "avx2": "AVX2"}  # widest first


@dataclass(frozen=True)
class Host:
    """The machine that took a measurement.

    Attributes:
        arch: `x86_64`, `aarch64`, ...
        isa: the instruction sets that matter to kernels, kernel spelling.
        cores: logical cores that this process may use.
        os: operating system name.
    """

    arch: str
    isa: tuple[str, ...]
    cores: int
    os: str

    def __str__(self) -> str:
        return f"{self.arch} [{' '.join(self.isa)}], {self.cores} cores, {self.os}"

    def has(self, feature: str) -> bool:
        """Whether the instruction set `feature` is there; `vnni` is any of its forms."""
        return any(name in self.isa for name in _ALIASES.get(feature, (feature,)))

    @staticmethod
    def can_tell(feature: str) -> bool:
        """Whether `feature` is an instruction set that is looked for."""
        return feature in _ALIASES or feature in _ISA_OF_INTEREST

    @property
    def knows_isa(self) -> bool:
        """Whether anything is known of the instruction sets: every 64-bit CPU has one of those that are looked for."""
        return bool(self.isa)

    @property
    def family(self) -> str:
        """The architecture as device tables spell it: `x86-64`, `arm64`, or what the system calls it."""
        return _FAMILIES.get(self.arch.lower(), self.arch)

    @property
    def kind(self) -> str:
        """Which kind of CPU, for tables of figures: `x86-64 with AVX2, without VNNI`."""
        if not self.knows_isa:
            return f"{self.family}, instruction sets not known"
        if self.family != "x86-64":
            return self.family + (" with dot products" if self.has("dotprod") else "")
        there = [label for name, label in _KINDS.items() if self.has(name)]
        widest = there[0] if there else "no AVX2"
        return f"{self.family} with {widest}, {'with' if self.has('vnni') else 'without'} VNNI"


@functools.cache
def this_host() -> Host:
    """Describe the machine this process runs on; see the top of this module for where the instruction sets are from."""
    return Host(platform.machine(), _read_isa(), usable_cores(), platform.system())


def usable_cores() -> int:
    """Logical cores that this process may use (honours CPU affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_isa() -> tuple[str, ...]:
    asked = instruction_sets()
    if asked is not None:
        return tuple(name for name in _ISA_OF_INTEREST if name in asked)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return isa_in(text, platform.machine())
    except OSError:
        return _isa_of_numpy()


def _isa_of_numpy() -> tuple[str, ...]:
    """What NumPy found out for its own kernels: less than a CPU has, and never more."""
    try:
        found: dict[str, bool] = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):
        return ()
    names = {_NUMPY[name] for name, there in found.items() if there and name in _NUMPY}
    return tuple(name for name in _ISA_OF_INTEREST if name in names)


def isa_in(cpuinfo: str, arch: str) -> tuple[str, ...]:
    """The instruction sets that matter, of the text of a /proc/cpuinfo (of this machine or another one).

    Args:
        cpuinfo: the text; under user-mode emulation it is that of the machine beneath, of another architecture.
        arch: the machine's architecture; what the text says of another one is not believed.
    """
    words = "Features" if _FAMILIES.get(arch.lower()) == "arm64" else "flags"  # as the kernel writes them for each
    lines = (line for line in cpuinfo.splitlines() if line.startswith(words))
    found = {word for line in lines for word in line.split(":", 1)[1].split()}
    return tuple(name for name in _ISA_OF_INTEREST if name in found)
