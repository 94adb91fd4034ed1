"""Instruction sets as data: TVM's target of each, and the steps that kernels are written over.

No claim is made about the machine this runs on: which instruction set a device has is for the device table to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.dot import PACKED, Dot, Packed, Registers
from deploykit_targets.tvm.kernels.expressions import Expr, fma, spread
from deploykit_targets.tvm.kernels.isa_arm import SADALP, SDOT, SMLAL, SMMLA
from deploykit_targets.tvm.kernels.isa_x86 import TDPBUSD, VPDPBUSD, VPDPBUSD_256, VPMADDUBSW, VPMADDWD


@dataclass(frozen=True)
class Isa:
    """An instruction set: TVM's target and its steps for both precisions.

    Args:
        name: as in `ISAS`.
        target: the fields of `tvm.target.Target`; a device's own may add to them.
        int8, float32: steps to build kernels from.
        products: for products of two int8 activations, which have all eight bits; None where `int8` takes these.
    """

    name: str
    target: Mapping[str, Any]
    int8: Dot
    float32: Dot
    products: Dot | None = None

    @property
    def activations(self) -> Dot:
        """The step for products of two activations."""
        return self.products or self.int8

    @property
    def bfloat16(self) -> Dot:
        """The step over bfloat16, in silicon or widened to float32."""
        from deploykit_targets.tvm.kernels.isa_bfloat16 import DOTS

        return DOTS[self.name]


def _fma(lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    return lambda acc, a, w: fma(spread(a, lanes), w, acc, lanes)


def _float(lanes: int, registers: Registers, mnemonic: str, packed: Packed) -> Dot:
    return Dot(lanes, 1, *("float32",) * 3, registers, mnemonic, _fma(lanes), packed=packed)


# pipelines of eight and ten took a tenth longer than twelve (Zen 5)
_VFMADD_512 = _float(16, Registers(32, pipeline=12), "vfmadd", Packed(PACKED))
_VFMADD_256 = _float(8, Registers(16, pipeline=12), "vfmadd", Packed(PACKED))
_FMLA = _float(4, Registers(32), "fmla", Packed())


def _x86(mcpu: str, *mattr: str) -> dict[str, Any]:
    return {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": mcpu, "mattr": list(mattr)}


def _arm(mcpu: str, *mattr: str) -> dict[str, Any]:
    keys = ["arm_cpu", "cpu"]
    return {"kind": "llvm", "keys": keys, "mtriple": "aarch64-linux-gnu", "mcpu": mcpu, "mattr": list(mattr)}


ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa("amx_int8", _x86("cascadelake", "+amx-tile", "+amx-int8"), TDPBUSD, _VFMADD_512),
        Isa("avx512_vnni", _x86("cascadelake"), VPDPBUSD, _VFMADD_512),
        Isa("amx_bf16", _x86("cooperlake", "+amx-tile", "+amx-bf16"), VPDPBUSD, _VFMADD_512),
        Isa("avx512_bf16", _x86("cooperlake"), VPDPBUSD, _VFMADD_512),
        Isa("avx_vnni", _x86("haswell", "+avxvnni"), VPDPBUSD_256, _VFMADD_256),
        Isa("avx2", _x86("haswell"), VPMADDWD, _VFMADD_256),
        Isa("avx2_7bit", _x86("haswell"), VPMADDUBSW, _VFMADD_256, VPMADDWD),
        Isa("sdot", _arm("cortex-a76", "+neon", "+dotprod", "+fullfp16"), SDOT, _FMLA),
        Isa("i8mm", _arm("neoverse-v1", "+neon", "+dotprod", "+i8mm", "+fullfp16"), SMMLA, _FMLA),
        Isa("neon_bf16", _arm("cortex-a76", "+neon", "+dotprod", "+bf16"), SDOT, _FMLA),
        Isa("neon", _arm("cortex-a72", "+neon"), SMLAL, _FMLA, SADALP),
    )
}


def isa(name: str) -> Isa:
    """The instruction set of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in ISAS:
        raise UsageError(f"kernels: no instruction set {name!r}", hint=f"one of {', '.join(ISAS)}")
    return ISAS[name]
