"""The steps of Arm: signed bytes, in one layout of packed weights for dot products, matrix products and plain NEON."""

from __future__ import annotations

from deploykit_targets.tvm.kernels.dot import IN_TWO_PARTS, OF_TWO_ROWS, PACKED_ARM, Depthwise, Dot, Packed, Registers
from deploykit_targets.tvm.kernels.expressions import Expr
from deploykit_targets.tvm.kernels.llvm_calls import intrinsic, repeat
from deploykit_targets.tvm.kernels.script import T


def _sdot(acc: Expr, a: Expr, w: Expr) -> Expr:
    """The repeated activations go last: that order yields the form that reads a lane, without a `dup`."""
    return intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", acc, w, repeat(a, "int8x16", 4))


def _sdot_across(acc: Expr, a: Expr, w: Expr) -> Expr:
    parts = []
    for part in range(4):
        lanes, taps = (list(range(size * part, size * (part + 1))) for size in (4, 16))
        sums, inputs, weights = (T.Shuffle([of], which) for of, which in ((acc, lanes), (a, taps), (w, taps)))
        parts.append(intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", sums, inputs, weights))
    return T.Shuffle(parts, list(range(16)))


def _smmla(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two rows by four columns, as two products of 2x8 by 8x2."""
    name, halves = "llvm.aarch64.neon.smmla.v4i32.v16i8", []
    for half in range(2):
        columns, sums = (list(range(size * half, size * (half + 1))) for size in (16, 4))
        products = intrinsic(name, "int32x4", T.Shuffle([acc], sums), a, T.Shuffle([w], columns))
        halves.append(products)
    return T.Shuffle(halves, list(range(8)))


def _smull_sadalp(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two products per lane, each exact in 16 bits, summed in 32."""
    pair = T.reinterpret("int8x8", T.Broadcast(T.reinterpret("int16", a), 4))
    product = intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", w, pair)
    return acc + intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", product)


def _smull_smlal_sadalp(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two products in 16 bits before they are summed in 32: 2 * 127 * 128 fits, so no weight is -128.

    Weights are those of `_sdot`: eight columns by four inputs, twice. Each lane has two inputs of a column, so that a
    column has two partial sums.
    """
    low, high = list(range(8)), list(range(8, 16))
    inputs = [T.Broadcast(T.reinterpret("int32", T.Shuffle([a], list(range(at, at + 4)))), 4) for at in (0, 4)]
    bytes_of = [T.reinterpret("int8x16", four) for four in inputs]
    sums = []
    for quarter in range(4):
        lanes = high if quarter % 2 else low
        columns = [T.Shuffle([w], list(range(first, first + 8))) for first in (8 * quarter, 32 + 8 * quarter)]
        products = [
            intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", by, T.Shuffle([of], lanes))
            for by, of in zip(columns, bytes_of, strict=True)
        ]
        total = intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", products[0] + products[1])
        sums.append(T.Shuffle([acc], list(range(4 * quarter, 4 * quarter + 4))) + total)
    return T.Shuffle(sums, list(range(16)))


def _sqxtn(value: Expr) -> Expr:
    return intrinsic("llvm.aarch64.neon.sqxtn.v8i8", "int8x8", value)


_KINDS = ("int8", "int8", "int32")
SDOT = Dot(
    *(4, 4, *_KINDS, Registers(32, wide=4), "sdot", _sdot),
    packed=Packed(PACKED_ARM),
    depthwise=Depthwise(across=_sdot_across),
    saturate=_sqxtn,
)
SMMLA = Dot(
    *(4, 8, *_KINDS, Registers(29), "smmla", _smmla),
    sums=OF_TWO_ROWS,
    packed=Packed(PACKED_ARM),
    alone=SDOT,
    depthwise=Depthwise(across=_sdot_across),
    saturate=_sqxtn,
)
SADALP = Dot(4, 2, *_KINDS, Registers(30), "sadalp", _smull_sadalp)
SMLAL = Dot(
    *(8, 8, *_KINDS, Registers(32), "smlal", _smull_smlal_sadalp),
    sums=IN_TWO_PARTS,
    packed=Packed(PACKED_ARM, 4),
    largest_weight=127,
    alone=SADALP,
    saturate=_sqxtn,
)
