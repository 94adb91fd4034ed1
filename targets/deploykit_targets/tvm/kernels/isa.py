"""Instruction sets as data: what one multiply-accumulate instruction of each takes, and how TVM is told to emit it.

A kernel is written once over a `Dot`; the differences between AVX-512 VNNI, AVX2 and the Arm variants are all here.
No claim is made about the machine this runs on: which instruction set a device has is for the device table to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.expressions import Expr, fill, fma, spread
from deploykit_targets.tvm.kernels.script import T


def _multiply_add(acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
    return acc + a * w


MATRIX_INPUTS = 64
"""Bytes of a row of a tile register (AMX)."""
_VECTOR_INPUTS = 4  # that one instruction of VNNI sums
_FILLED_ARM = 8  # that one step of plain NEON or of matrix products takes
_MOST_FILLING = 1.25  # times the inputs of a stretch, with which a step that takes more is still the quicker
_FEWEST_TILE_ROWS = 4  # below, loading a tile of weights takes as long as multiplying vectors


class Pairs(NamedTuple):
    """Products of bytes that are added two by two in 16 bits, whose sums are then added in 32.

    Attributes:
        product: (`group` inputs of a row, weights) -> sums of two products, 16 bits.
        flipped: (`group` inputs of a row, magnitudes of weights, bits of the inputs to invert) -> the same.
        add: (accumulators, such sums) -> accumulators.
    """

    product: Callable[[Expr, Expr], Expr]
    flipped: Callable[[Expr, Expr, Expr], Expr]
    add: Callable[[Expr, Expr], Expr]


def fills_matrices(run: int, matrix: int = MATRIX_INPUTS, vector: int = _VECTOR_INPUTS) -> bool:
    """Whether a stretch of `run` inputs takes matrices no longer than vectors, two of which start each cycle.

    Args:
        matrix, vector: inputs that one instruction of each sums: those of bytes, or half as many of 16 bits.
    """
    return math.ceil(run / matrix) <= math.ceil(run / vector) / 2


@dataclass(frozen=True)
class Dot:
    """One multiply-accumulate step over a register of accumulators.

    Args:
        lanes: accumulators per register, one per output column.
        group: input channels that one step multiplies and sums into each lane.
        activation, weight, accumulator: dtypes in memory (activation, packed weight) and in the register.
        registers: vector registers that a tile may fill (accumulators, weights and one broadcast activation).
        mnemonic: the instruction that the assembly of a kernel must contain.
        lane_by_lane: (accumulator, a, w, lanes) -> accumulator + a * w, both bytes widened to int32; for integers.
        pair: rows that one step takes; each has `group` activations, and its accumulators are told apart by `row`.
        alone: what a line of one pixel takes instead, where a step takes more rows.
        wide: steps whose activations are best loaded together, where an instruction can then read one lane.
        tiles: registers that hold whole matrices, where a step multiplies two of these; else 0. `registers` is then
            unused, and `step` is that of `alone`, which short lines and what multiplies lane by lane take.
        partial: accumulators of one column, beside each other; their sum is the column's.
        interleaved: inputs of one column that lie beside each other in packed weights; `group` of them where 0.
        packed_lanes: columns that lie beside each other in packed weights, vector after vector, so that instruction
            sets with as many or fewer lanes read the same bytes; 0: the vectors of a tile lie beside each other.
        pipeline: independent accumulators that hide the latency of the units that multiply and accumulate.
        parted: whether activations and weights are each parted in two in registers, behind a mask.
        weight_bits: the width of weights whose sums cannot saturate.
        largest_weight: the largest magnitude of these; 0: what the bits have.
        across: (int32x16, int8x64, int8x64) -> int32x16, each lane plus the products of its four bytes; None where it
            takes more than four instructions.
        saturate: 16-bit integers of `packed_lanes` columns -> int8, where columns are finished so many at a time and
            sums that are small enough take few operations (`conv_plan.ConvPlan.bounded`); else None.
        code: functions that `step` calls, in LLVM's language (`llvm_calls`).
        pairs: products of bytes that are added in 16 bits, of the same layout, for steps in the order of a list
            (`step_list`); None where `step` is the only way.
        step: (accumulators, `group` activations of each row, lanes * group weights) -> accumulators, as TIR
            expressions.
    """

    lanes: int
    group: int
    activation: str
    weight: str
    accumulator: str
    registers: int
    mnemonic: str
    step: Callable[[Expr, Expr, Expr], Expr]
    lane_by_lane: Callable[[Expr, Expr, Expr, int], Expr] = _multiply_add
    wide: int = 1
    pair: int = 1
    alone: Dot | None = None
    tiles: int = 0
    partial: int = 1
    interleaved: int = 0
    packed_lanes: int = 0
    pipeline: int = 8
    parted: bool = False
    weight_bits: int = 8
    largest_weight: int = 0
    across: Callable[[Expr, Expr, Expr], Expr] | None = None
    saturate: Callable[[Expr], Expr] | None = None
    code: str = ""
    pairs: Pairs | None = None

    @property
    def by_lane(self) -> Dot:
        """This step, or the one over vectors where this one multiplies matrices."""
        return self.alone if self.tiles and self.alone is not None else self

    @property
    def fills_lines(self) -> bool:
        """Whether packed weights of a step fill a cache line; those of x86 do."""
        return self.packed_lanes == _PACKED

    @property
    def sums(self) -> int:
        """Accumulators of a step for one vector of columns."""
        return self.lanes * self.pair * self.partial

    @property
    def summed(self) -> tuple[list[int], list[int]]:
        """Of all sums of `packed_lanes` columns: which start from something, and of which column each of these is."""
        columns = list(range(self.packed_lanes))
        if self.partial > 1:
            return [column * self.partial for column in columns], columns
        return list(range(len(self.finished))), self.finished

    @property
    def finished(self) -> list[int]:
        """Column of each result of a step over `packed_lanes` columns, in the order of its sums."""
        if self.pair == 1:
            return list(range(self.packed_lanes))
        return [first + column for first in range(0, self.packed_lanes, 2) for _ in range(2) for column in range(2)]

    def row(self, accumulators: Expr, row: int) -> Expr:
        """The sums of one row, of a step's accumulators."""
        if self.partial > 1:
            return _add_neighbours(accumulators, self.lanes, self.accumulator)
        if self.pair == 1:
            return accumulators
        return T.Shuffle([accumulators], self.row_places(row, self.lanes))

    def row_places(self, row: int, columns: int) -> list[int]:
        """Where the sums of a row are, of a step's that takes two: (row 0, column 0), (0, 1), (1, 0), (1, 1), ..."""
        return [quad + 2 * row + column for quad in range(0, 2 * columns, 4) for column in range(2)]

    def for_pixels(self, pixels: int) -> Dot:
        """This step, or the one for lines too short for it."""
        least = _FEWEST_TILE_ROWS if self.tiles else self.pair
        return self.alone if self.alone is not None and pixels < least else self

    def for_inputs(self, run: int) -> Dot:
        """This step, or its `alone` where a stretch of `run` inputs fills too little of what this one takes."""
        if self.alone is None or not (self.tiles or self.partial > 1):
            return self
        if self.tiles:
            return self if fills_matrices(run, self.group, self.interleaved) else self.alone
        return self if math.ceil(run / self.group) * self.group <= _MOST_FILLING * run else self.alone

    def packed_run(self, run: int) -> int:
        """Inputs of a stretch of `run` in shared packed weights: filled up to what the widest step of these takes."""
        if self.activation == "int8":
            group = _FILLED_ARM
        else:
            matrix, group = self._matrix_inputs, self.interleaved or self.group
            group = matrix if matrix and fills_matrices(run, matrix, group) else group
        return math.ceil(run / group) * group

    def together(self, columns: int) -> list[int]:
        """Where what two rows have one after the other comes from, for each of a step's sums of both."""
        places = [(row, column) for first in range(0, columns, 2) for row in range(2) for column in (first, first + 1)]
        return [row * columns + column for row, column in places]

    @property
    def _matrix_inputs(self) -> int:
        """Inputs of a row of a tile register, where weights are packed for instruction sets that have these; else 0."""
        if self.quantized:
            return MATRIX_INPUTS
        return MATRIX_INPUTS // 2 if self.weight == "uint16" and self.packed_lanes == _PACKED else 0

    def read_at_once(self, steps: int) -> int:
        """Steps whose activations one load brings, of a stretch of that many."""
        return steps if steps < self.wide else math.gcd(steps, self.wide)

    def loaded_at_once(self, steps: int) -> int:
        """Steps whose activations that load has room for: a register is loaded as a whole or by a half."""
        return 1 << (self.read_at_once(steps) - 1).bit_length()

    @property
    def quantized(self) -> bool:
        """Whether it accumulates integers, which a kernel scales back at its end."""
        return self.accumulator == "int32"


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


def _intrinsic(name: str, dtype: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(name), *arguments)


def _repeat(pair: Expr, dtype: str, lanes: int) -> Expr:
    """The same 32 bits in each lane, seen as `dtype`."""
    return T.reinterpret(dtype, T.Broadcast(T.reinterpret("int32", pair), lanes))


def _vpdpbusd(bits: int) -> Callable[[Expr, Expr, Expr], Expr]:
    lanes = bits // 32
    return lambda acc, a, w: _intrinsic(
        f"llvm.x86.avx512.vpdpbusd.{bits}", f"int32x{lanes}", acc, _repeat(a, f"int8x{lanes * 4}", lanes), w
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
        return _intrinsic(f"llvm.x86.avx512.vpdpbusd.{lanes * 32}", f"int32x{lanes}", acc, a, w)

    return step


def _vpmaddwd(acc: Expr, a: Expr, w: Expr) -> Expr:
    """16-bit products: `vpmaddubsw`, which takes bytes, would saturate.

    Four bytes are repeated by the load; a mask and a shift leave the first and third, and the second and fourth, as 16
    bits, which costs no shuffle: there is one port for these, and widening took it for longer than the products.
    Shifts do the same to weights, once for all rows of a tile.
    """
    four, weights, eight = _repeat(a, "uint16x16", 8), T.reinterpret("int16x16", w), fill(8, "int16", 16)
    inputs = four & fill(0x00FF, "uint16", 16), four >> fill(8, "uint16", 16)
    for part, by in zip(inputs, ((weights << eight) >> eight, weights >> eight), strict=True):
        acc = acc + _intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", T.reinterpret("int16x16", part), by)
    return acc


def _byte_pairs(a: Expr, w: Expr) -> Expr:
    return _intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", _repeat(a, "int8x32", 8), w)


def _flipped_pairs(a: Expr, magnitudes: Expr, inverted: Expr) -> Expr:
    """The magnitudes are the operand without a sign."""
    return _intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", magnitudes, _repeat(a, "int8x32", 8) ^ inverted)


def _add_pairs(acc: Expr, pairs: Expr) -> Expr:
    return acc + _intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, fill(1, "int16", 16))


def _vpmaddubsw(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two products per 16 bits: 2 * 255 * 64 fits, so weights have 7 bits."""
    return _add_pairs(acc, _byte_pairs(a, w))


def _sdot(acc: Expr, a: Expr, w: Expr) -> Expr:
    """The repeated activations go last: that order yields the form that reads a lane, without a `dup`."""
    return _intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", acc, w, _repeat(a, "int8x16", 4))


def _sdot_across(acc: Expr, a: Expr, w: Expr) -> Expr:
    parts = []
    for part in range(4):
        lanes, taps = (list(range(size * part, size * (part + 1))) for size in (4, 16))
        sums, inputs, weights = (T.Shuffle([of], which) for of, which in ((acc, lanes), (a, taps), (w, taps)))
        parts.append(_intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", sums, inputs, weights))
    return T.Shuffle(parts, list(range(16)))


def _smmla(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two rows by four columns, as two products of 2x8 by 8x2."""
    name, halves = "llvm.aarch64.neon.smmla.v4i32.v16i8", []
    for half in range(2):
        columns, sums = (list(range(size * half, size * (half + 1))) for size in (16, 4))
        products = _intrinsic(name, "int32x4", T.Shuffle([acc], sums), a, T.Shuffle([w], columns))
        halves.append(products)
    return T.Shuffle(halves, list(range(8)))


def _smull_sadalp(acc: Expr, a: Expr, w: Expr) -> Expr:
    """Two products per lane, each exact in 16 bits, summed in 32."""
    pair = T.reinterpret("int8x8", T.Broadcast(T.reinterpret("int16", a), 4))
    product = _intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", w, pair)
    return acc + _intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", product)


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
            _intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", by, T.Shuffle([of], lanes))
            for by, of in zip(columns, bytes_of, strict=True)
        ]
        total = _intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", products[0] + products[1])
        sums.append(T.Shuffle([acc], list(range(4 * quarter, 4 * quarter + 4))) + total)
    return T.Shuffle(sums, list(range(16)))


def _add_neighbours(accumulators: Expr, lanes: int, dtype: str) -> Expr:
    """Each two of 2 * `lanes` accumulators."""
    name, sums = f"llvm.aarch64.neon.{'addp.v4i32' if dtype == 'int32' else 'faddp.v4f32'}", []
    for first in range(0, 2 * lanes, 8):
        pair = [T.Shuffle([accumulators], list(range(at, at + 4))) for at in (first, first + 4)]
        sums.append(_intrinsic(name, f"{dtype}x4", *pair))
    return T.Shuffle(sums, list(range(lanes)))


def _sqxtn(value: Expr) -> Expr:
    return _intrinsic("llvm.aarch64.neon.sqxtn.v8i8", "int8x8", value)


def _fma(lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    return lambda acc, a, w: fma(spread(a, lanes), w, acc, lanes)


_PACKED = 16  # columns: the lanes of the widest
_PACKED_ARM = 8  # columns that become bytes of one register, by one instruction


def _float(lanes: int, registers: int, mnemonic: str) -> Dot:
    x86 = mnemonic.startswith("v")
    packed, pipeline = (_PACKED, 12) if x86 else (0, 8)  # eight and ten took a tenth longer than twelve (Zen 5)
    step, kinds = _fma(lanes), ("float32", "float32", "float32")
    return Dot(lanes, 1, *kinds, registers, mnemonic, step, packed_lanes=packed, pipeline=pipeline)


def _x86(mcpu: str, *mattr: str) -> dict[str, Any]:
    return {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": mcpu, "mattr": list(mattr)}


def _arm(mcpu: str, *mattr: str) -> dict[str, Any]:
    keys = ["arm_cpu", "cpu"]
    return {"kind": "llvm", "keys": keys, "mtriple": "aarch64-linux-gnu", "mcpu": mcpu, "mattr": list(mattr)}


def _bytes(lanes: int, registers: int, mnemonic: str, step: Callable[[Expr, Expr, Expr], Expr], **more: Any) -> Dot:
    """Four unsigned bytes by four signed ones, in the layout that all x86 instruction sets share."""
    return Dot(lanes, 4, "uint8", "int8", "int32", registers, mnemonic, step, packed_lanes=_PACKED, **more)


_VPDPBUSD = _bytes(16, 32, "vpdpbusd", _vpdpbusd(512), lane_by_lane=_vpdpbusd_lanes(16))
_PAIRS = Pairs(_byte_pairs, _flipped_pairs, _add_pairs)
_VPMADDUBSW = _bytes(8, 14, "vpmaddubsw", _vpmaddubsw, weight_bits=7, pairs=_PAIRS)
_VPMADDWD = _bytes(8, 16, "vpmaddwd", _vpmaddwd, parted=True, pairs=_PAIRS)
_TDPBUSD = replace(
    _VPDPBUSD, group=MATRIX_INPUTS, mnemonic="tdpbusd", alone=_VPDPBUSD, tiles=8, interleaved=_VECTOR_INPUTS
)
_SDOT = Dot(
    *(4, 4, "int8", "int8", "int32", 32, "sdot", _sdot),
    wide=4,
    packed_lanes=_PACKED_ARM,
    across=_sdot_across,
    saturate=_sqxtn,
)
_SMMLA = Dot(
    *(4, 8, "int8", "int8", "int32", 29, "smmla", _smmla),
    pair=2,
    alone=_SDOT,
    packed_lanes=_PACKED_ARM,
    across=_sdot_across,
    saturate=_sqxtn,
)
_SADALP = Dot(4, 2, "int8", "int8", "int32", 30, "sadalp", _smull_sadalp)
_SMLAL = Dot(
    *(8, 8, "int8", "int8", "int32", 32, "smlal", _smull_smlal_sadalp),
    alone=_SADALP,
    partial=2,
    interleaved=4,
    packed_lanes=_PACKED_ARM,
    largest_weight=127,
    saturate=_sqxtn,
)

ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa(
            "amx_int8",
            _x86("cascadelake", "+amx-tile", "+amx-int8"),
            _TDPBUSD,
            _float(16, 32, "vfmadd"),
        ),
        Isa(
            "avx512_vnni",
            _x86("cascadelake"),
            _VPDPBUSD,
            _float(16, 32, "vfmadd"),
        ),
        Isa(
            "amx_bf16",
            _x86("cooperlake", "+amx-tile", "+amx-bf16"),
            _VPDPBUSD,
            _float(16, 32, "vfmadd"),
        ),
        Isa(
            "avx512_bf16",
            _x86("cooperlake"),
            _VPDPBUSD,
            _float(16, 32, "vfmadd"),
        ),
        Isa(
            "avx_vnni",
            _x86("haswell", "+avxvnni"),
            _bytes(8, 15, "vpdpbusd", _vpdpbusd(256), lane_by_lane=_vpdpbusd_lanes(8)),
            _float(8, 16, "vfmadd"),
        ),
        Isa(
            "avx2",
            _x86("haswell"),
            _VPMADDWD,
            _float(8, 16, "vfmadd"),
        ),
        Isa(
            "avx2_7bit",
            _x86("haswell"),
            _VPMADDUBSW,
            _float(8, 16, "vfmadd"),
            _VPMADDWD,
        ),
        Isa(
            "sdot",
            _arm("cortex-a76", "+neon", "+dotprod", "+fullfp16"),
            _SDOT,
            _float(4, 32, "fmla"),
        ),
        Isa(
            "i8mm",
            _arm("neoverse-v1", "+neon", "+dotprod", "+i8mm", "+fullfp16"),
            _SMMLA,
            _float(4, 32, "fmla"),
        ),
        Isa(
            "neon_bf16",
            _arm("cortex-a76", "+neon", "+dotprod", "+bf16"),
            _SDOT,
            _float(4, 32, "fmla"),
        ),
        Isa(
            "neon",
            _arm("cortex-a72", "+neon"),
            _SMLAL,
            _float(4, 32, "fmla"),
            _SADALP,
        ),
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
