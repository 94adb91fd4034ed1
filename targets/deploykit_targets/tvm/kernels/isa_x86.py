"""The steps of x86: four unsigned bytes by four signed ones, in a layout of packed weights that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deploykit_targets.tvm.kernels.dot import MATRIX_INPUTS, PACKED, Depthwise, Dot, Packed, Pairs, Registers
from deploykit_targets.tvm.kernels.expressions import Expr, fill
from deploykit_targets.tvm.kernels.llvm_calls import intrinsic, repeat
from deploykit_targets.tvm.kernels.script import T


def _vpdpbusd(bits: int) -> Callable[[Expr, Expr, Expr], Expr]:
    lanes = bits // 32
    return lambda acc, a, w: intrinsic(
        f"llvm.x86.avx512.vpdpbusd.{bits}", f"int32x{lanes}", acc, repeat(a, f"int8x{lanes * 4}", lanes), w
    )


def _vpdpbusd_lanes(widest: int) -> Callable[[Expr, Expr, Expr, int], Expr]:
    """Of the four bytes in each lane of `a` three are zero: one instruction, where `vpmaddwd` needs an addition."""

    def step(acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
        if lanes < 4:
            return acc + a * w
        if lanes > widest:
            halves = [list(range(start, start + widest)) for start in range(0, lanes, widest)]
            acc, a, w = ([T.Shuffle([value], half) for half in halves] for value in (acc, a, w))
            parts = [step(*three, widest) for three in zip(acc, a, w, strict=True)]
            return T.Shuffle(parts, list(range(lanes)))
        a, w = (T.reinterpret(f"int8x{lanes * 4}", value) for value in (a, w))
        return intrinsic(f"llvm.x86.avx512.vpdpbusd.{lanes * 32}", f"int32x{lanes}", acc, a, w)

    return step


def _vpmaddwd(acc: Expr, a: Expr, w: Expr) -> Expr:
    """16-bit products: `vpmaddubsw`, which takes bytes, would saturate.

    Four bytes are repeated by the load; a mask and a shift leave the first and third, and the second and fourth, as 16
    bits, which costs no shuffle: there is one port for these, and widening took it for longer than the products.
    Shifts do the same to weights, once for all rows of a tile.
    """
    four, weights, eight = repeat(a, "uint16x16", 8), T.reinterpret("int16x16", w), fill(8, "int16", 16)
    inputs = four & fill(0x00FF, "uint16", 16), four >> fill(8, "uint16", 16)
    for part, by in zip(inputs, ((weights << eight) >> eight, weights >> eight), strict=True):
        acc = acc + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", T.reinterpret("int16x16", part), by)
    return acc


def _byte_pairs(a: Expr, w: Expr) -> Expr:
    return intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", repeat(a, "int8x32", 8), w)


def _flipped_pairs(a: Expr, magnitudes: Expr, inverted: Expr) -> Expr:
    """The magnitudes are the operand without a sign."""
    return intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", magnitudes, repeat(a, "int8x32", 8) ^ inverted)


def _add_pairs(acc: Expr, pairs: Expr) -> Expr:
    return acc + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, fill(1, "int16", 16))


def _vpmaddubsw(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two products per 16 bits: 2 * 255 * 64 fits, so weights have 7 bits."""
    return _add_pairs(acc, _byte_pairs(a, w))


def _bytes(
    lanes: int, registers: Registers, mnemonic: str, step: Callable[[Expr, Expr, Expr], Expr], **more: Any
) -> Dot:
    kinds = ("uint8", "int8", "int32")
    return Dot(lanes, 4, *kinds, registers, mnemonic, step, packed=Packed(PACKED), **more)


_PAIRS = Pairs(_byte_pairs, _flipped_pairs, _add_pairs)
VPDPBUSD = _bytes(16, Registers(32), "vpdpbusd", _vpdpbusd(512), depthwise=Depthwise(_vpdpbusd_lanes(16)))
VPDPBUSD_256 = _bytes(8, Registers(15), "vpdpbusd", _vpdpbusd(256), depthwise=Depthwise(_vpdpbusd_lanes(8)))
VPMADDUBSW = _bytes(8, Registers(14), "vpmaddubsw", _vpmaddubsw, largest_weight=64, pairs=_PAIRS)
VPMADDWD = _bytes(8, Registers(16, parted=True), "vpmaddwd", _vpmaddwd, pairs=_PAIRS)
TDPBUSD = replace(
    VPDPBUSD,
    group=MATRIX_INPUTS,
    registers=Registers(32, matrices=8),
    mnemonic="tdpbusd",
    packed=Packed(PACKED, VPDPBUSD.group),
    alone=VPDPBUSD,
)
