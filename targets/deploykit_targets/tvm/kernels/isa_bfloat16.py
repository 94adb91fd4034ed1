"""Steps over bfloat16 for each instruction set: two or four products of bfloat16 summed into float32.

Where the silicon has none, inputs and weights are widened to float32 in registers, which is exact, and multiplied
there: the same rounded numbers, summed in another order. So one artifact runs on every CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16, halves
from deploykit_targets.tvm.kernels.dot import (
    IN_TWO_PARTS,
    MATRIX_INPUTS,
    OF_TWO_ROWS,
    PACKED,
    PACKED_ARM,
    Dot,
    Packed,
    Registers,
)
from deploykit_targets.tvm.kernels.expressions import Expr, fma
from deploykit_targets.tvm.kernels.llvm_calls import Call
from deploykit_targets.tvm.kernels.script import T

_KINDS = (BFLOAT16, BFLOAT16, "float32")
_X86, _ARM = Packed(PACKED), Packed(PACKED_ARM)

_DPBF16PS = Call("deploykit_vdpbf16ps", "llvm.x86.avx512bf16.dpbf16ps.512", 16)
_MMLA = Call("deploykit_bfmmla", "llvm.aarch64.neon.bfmmla", 4)
_DOT = Call("deploykit_bfdot", "llvm.aarch64.neon.bfdot.v4f32.v8bf16", 4)


def _part(vector: Expr, number: int, lanes: int) -> Expr:
    """Part `number` of a vector, `lanes` wide."""
    return T.Shuffle([vector], list(range(lanes * number, lanes * (number + 1))))


def _vdpbf16ps(acc: Expr, a: Expr, w: Expr) -> Expr:
    result: Expr = _DPBF16PS(acc, T.Broadcast(T.reinterpret("int32", a), 16), w)
    return result


def _widening(lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    """Two FMAs for each pair; a shift and a mask part it, once for all rows or columns of a tile."""

    def step(acc: Expr, a: Expr, w: Expr) -> Expr:
        inputs = halves(T.Broadcast(T.reinterpret("uint32", a), lanes), lanes)
        weights = halves(T.reinterpret(f"uint32x{lanes}", w), lanes)
        for one, by in zip(inputs, weights, strict=True):
            acc = fma(one, by, acc, lanes)
        return acc

    return step


def _bfmmla(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two rows by four columns, as two products of 2x4 by 4x2."""
    parts = [_MMLA(_part(acc, half, 4), a, _part(w, half, 8)) for half in range(2)]
    return T.Shuffle(parts, list(range(8)))


def _bfdot(acc: Expr, a: Expr, w: Expr) -> Expr:
    """One row over the weights of `_bfmmla`: a register has four inputs of two columns, which have two sums each."""
    row = T.Broadcast(T.reinterpret("int64", a), 2)
    parts = [_DOT(_part(acc, quarter, 4), row, _part(w, quarter, 8)) for quarter in range(4)]
    return T.Shuffle(parts, list(range(16)))


def _widening_neon(acc: Expr, a: Expr, w: Expr) -> Expr:
    """`_bfdot` in float32."""
    inputs = halves(T.reinterpret("uint32x4", T.Broadcast(T.reinterpret("int64", a), 2)), 4)
    parts = []
    for quarter in range(4):
        weights, sums = halves(T.reinterpret("uint32x4", _part(w, quarter, 8)), 4), _part(acc, quarter, 4)
        for one, by in zip(inputs, weights, strict=True):
            sums = fma(one, by, sums, 4)
        parts.append(sums)
    return T.Shuffle(parts, list(range(16)))


def _widened(lanes: int, vectors: int) -> Dot:
    registers = Registers(vectors, pipeline=12, parted=True)
    return Dot(lanes, 2, *_KINDS, registers, "vfmadd", _widening(lanes), packed=_X86)


_VDPBF16PS = Dot(16, 2, *_KINDS, Registers(32), "vdpbf16ps", _vdpbf16ps, packed=_X86, code=_DPBF16PS.code)
_TDPBF16PS = replace(
    _VDPBF16PS,
    group=MATRIX_INPUTS // 2,
    registers=Registers(32, matrices=8),
    mnemonic="tdpbf16ps",
    code="",
    packed=Packed(PACKED, _VDPBF16PS.group),
    alone=_VDPBF16PS,
)
_BFDOT = Dot(8, 4, *_KINDS, Registers(32), "bfdot", _bfdot, sums=IN_TWO_PARTS, packed=_ARM, code=_DOT.code)
_BFMMLA = Dot(
    *(4, 4, *_KINDS, Registers(29), "bfmmla", _bfmmla), sums=OF_TWO_ROWS, packed=_ARM, alone=_BFDOT, code=_MMLA.code
)
_FMLA = Dot(8, 4, *_KINDS, Registers(32), "fmla", _widening_neon, sums=IN_TWO_PARTS, packed=_ARM)

DOTS: Mapping[str, Dot] = {
    "amx_bf16": _TDPBF16PS,
    "avx512_bf16": _VDPBF16PS,
    "amx_int8": _widened(16, 32),
    "avx512_vnni": _widened(16, 32),
    "avx_vnni": _widened(8, 16),
    "avx2": _widened(8, 16),
    "avx2_7bit": _widened(8, 16),
    "neon_bf16": _BFMMLA,
    "i8mm": _FMLA,
    "sdot": _FMLA,
    "neon": _FMLA,
}
"""By the name of the instruction set."""


def mnemonics(name: str) -> frozenset[str]:
    """The instructions over bfloat16 that the kernels of an instruction set may have; none where it is widened."""
    dot = DOTS[name]
    steps = [dot, *([dot.alone] if dot.alone else [])]
    return frozenset(step.mnemonic for step in steps if step.code or step.multiplies_matrices)
