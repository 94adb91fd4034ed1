"""`Dot`: what one multiply-accumulate instruction takes, and how a kernel has it emitted.

A kernel is written once over a `Dot`; what differs between AVX-512 VNNI, AVX2, AMX and the Arm variants are its fields,
in `isa_x86`, `isa_arm` and `isa_bfloat16`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from deploykit_targets.tvm.kernels.expressions import Expr
from deploykit_targets.tvm.kernels.llvm_calls import intrinsic
from deploykit_targets.tvm.kernels.script import T

MATRIX_INPUTS = 64
"""Bytes of a row of a tile register (AMX)."""
PACKED, PACKED_ARM = 16, 8
"""Columns beside each other in packed weights: the lanes of the widest of x86; bytes of one register, of Arm."""
_VECTOR_INPUTS = 4  # that one instruction of VNNI sums
_FILLED_ARM = 8  # that one step of plain NEON or of matrix products takes
_MOST_FILLING = 1.25  # times the inputs of a stretch, with which a step that takes more is still the quicker
_FEWEST_TILE_ROWS = 4  # below, loading a tile of weights takes as long as multiplying vectors


@dataclass(frozen=True)
class Registers:
    """What the tile of a product has to fit in, and to keep busy (`tiles`).

    Attributes:
        vectors: vector registers that a tile may fill (accumulators, weights and one broadcast activation).
        matrices: registers that hold whole matrices, where a step multiplies two of these; else 0. `vectors` is then
            unused.
        pipeline: independent accumulators that hide the latency of the units that multiply and accumulate.
        wide: steps whose activations are best loaded together, where an instruction can then read one lane.
        parted: whether activations and weights are each parted in two in registers, behind a mask.
    """

    vectors: int
    matrices: int = 0
    pipeline: int = 8
    wide: int = 1
    parted: bool = False

    def read_at_once(self, steps: int) -> int:
        """Steps whose activations one load brings, of a stretch of that many."""
        return steps if steps < self.wide else math.gcd(steps, self.wide)

    def loaded_at_once(self, steps: int) -> int:
        """Steps whose activations that load has room for: a register is loaded as a whole or by a half."""
        return 1 << (self.read_at_once(steps) - 1).bit_length()


class Sums:
    """How the sums of a step lie in its accumulators: one row, one sum for each column.

    Attributes:
        rows: rows that one step takes; each has `group` activations.
        parts: accumulators of one column, beside each other; their sum is the column's.
    """

    rows = 1
    parts = 1

    def of_row(self, accumulators: Expr, row: int, lanes: int, dtype: str) -> Expr:
        """The sums of one row, of a step's accumulators over `lanes` columns."""
        del row, lanes, dtype
        return accumulators

    def started(self, columns: int) -> tuple[list[int], list[int]]:
        """Of all sums of that many columns: which start from something, and of which column each of these is."""
        finished = self.finished(columns)
        return list(range(len(finished))), finished

    def finished(self, columns: int) -> list[int]:
        """Column of each result of a step over that many columns, in the order of its sums."""
        return list(range(columns))

    def places(self, row: int, columns: int) -> list[int]:
        """Where the results of a row are, of a step's."""
        del row
        return list(range(columns))

    def together(self, columns: int) -> list[int]:
        """Where each of a step's results is, of what its rows have one after the other."""
        return list(range(columns))


class OfTwoRows(Sums):
    """(row 0, column 0), (0, 1), (1, 0), (1, 1), and the same of the next two columns."""

    rows = 2

    def of_row(self, accumulators: Expr, row: int, lanes: int, dtype: str) -> Expr:
        """See `Sums.of_row`."""
        del dtype
        return T.Shuffle([accumulators], self.places(row, lanes))

    def finished(self, columns: int) -> list[int]:
        """See `Sums.finished`."""
        return [first + column for first in range(0, columns, 2) for _ in range(2) for column in range(2)]

    def places(self, row: int, columns: int) -> list[int]:
        """See `Sums.places`."""
        return [quad + 2 * row + column for quad in range(0, 2 * columns, 4) for column in range(2)]

    def together(self, columns: int) -> list[int]:
        """See `Sums.together`."""
        places = [(row, column) for first in range(0, columns, 2) for row in range(2) for column in (first, first + 1)]
        return [row * columns + column for row, column in places]


class InTwoParts(Sums):
    """Two sums for each column of one row, which an instruction of Arm adds to one."""

    parts = 2

    def of_row(self, accumulators: Expr, row: int, lanes: int, dtype: str) -> Expr:
        """See `Sums.of_row`."""
        del row
        name, sums = f"llvm.aarch64.neon.{'addp.v4i32' if dtype == 'int32' else 'faddp.v4f32'}", []
        for first in range(0, 2 * lanes, 8):
            pair = [T.Shuffle([accumulators], list(range(at, at + 4))) for at in (first, first + 4)]
            sums.append(intrinsic(name, f"{dtype}x4", *pair))
        return T.Shuffle(sums, list(range(lanes)))

    def started(self, columns: int) -> tuple[list[int], list[int]]:
        """See `Sums.started`: one of two parts."""
        return [column * self.parts for column in range(columns)], list(range(columns))


OF_ONE_ROW, OF_TWO_ROWS, IN_TWO_PARTS = Sums(), OfTwoRows(), InTwoParts()


class Packed(NamedTuple):
    """The layout of packed weights, where instruction sets share one.

    Attributes:
        columns: columns that lie beside each other, vector after vector, so that instruction sets with as many or fewer
            lanes read the same bytes; 0: the vectors of a tile lie beside each other.
        inputs: inputs of one column that lie beside each other; `group` of them where 0.
    """

    columns: int = 0
    inputs: int = 0


_AS_THE_TILE = Packed()


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


def multiply_add(acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
    """Lane by lane, of integers that are widened already."""
    del lanes
    return acc + a * w


class Depthwise(NamedTuple):
    """What kernels of one filter per channel take.

    Attributes:
        lane_by_lane: (accumulator, a, w, lanes) -> accumulator + a * w, both bytes widened to int32; for integers.
        across: (int32x16, int8x64, int8x64) -> int32x16, each lane plus the products of its four bytes; None where it
            takes more than four instructions.
    """

    lane_by_lane: Callable[[Expr, Expr, Expr, int], Expr] = multiply_add
    across: Callable[[Expr, Expr, Expr], Expr] | None = None


_PLAIN = Depthwise()


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
        registers: what the tile of a product has to fit in. Where matrices are multiplied, `step` is that of `alone`,
            which short lines and what multiplies lane by lane take.
        mnemonic: the instruction that the assembly of a kernel must contain.
        step: (accumulators, `group` activations of each row, lanes * group weights) -> accumulators, as TIR
            expressions.
        code: functions that `step` calls, in LLVM's language (`llvm_calls`).
        sums: how its sums lie in the accumulators.
        packed: the layout of packed weights.
        largest_weight: the largest magnitude of weights whose sums cannot saturate.
        alone: what a line of one pixel takes instead, where a step takes more rows.
        depthwise: what kernels of one filter per channel take.
        saturate: 16-bit integers of `packed.columns` columns -> int8, where columns are finished so many at a time and
            sums that are small enough take few operations (`conv_plan.ConvPlan.bounded`); else None.
        pairs: products of bytes that are added in 16 bits, of the same layout, for steps in the order of a list
            (`step_list`); None where `step` is the only way.
    """

    lanes: int
    group: int
    activation: str
    weight: str
    accumulator: str
    registers: Registers
    mnemonic: str
    step: Callable[[Expr, Expr, Expr], Expr]
    code: str = ""
    sums: Sums = OF_ONE_ROW
    packed: Packed = _AS_THE_TILE
    largest_weight: int = 128
    alone: Dot | None = None
    depthwise: Depthwise = _PLAIN
    saturate: Callable[[Expr], Expr] | None = None
    pairs: Pairs | None = None

    @property
    def quantized(self) -> bool:
        """Whether it accumulates integers, which a kernel scales back at its end."""
        return self.accumulator == "int32"

    @property
    def multiplies_matrices(self) -> bool:
        """Whether a step multiplies two matrices in tile registers."""
        return self.registers.matrices > 0

    @property
    def accumulators(self) -> int:
        """Accumulators of a step for one vector of columns."""
        return self.lanes * self.sums.rows * self.sums.parts

    @property
    def fills_lines(self) -> bool:
        """Whether packed weights of a step fill a cache line; those of x86 do."""
        return self.packed.columns == PACKED

    def row(self, accumulators: Expr, row: int) -> Expr:
        """The sums of one row, of a step's accumulators."""
        return self.sums.of_row(accumulators, row, self.lanes, self.accumulator)

    def for_pixels(self, pixels: int) -> Dot:
        """This step, or the one for lines too short for it."""
        least = _FEWEST_TILE_ROWS if self.multiplies_matrices else self.sums.rows
        return self.alone if self.alone is not None and pixels < least else self

    def for_inputs(self, run: int) -> Dot:
        """This step, or its `alone` where a stretch of `run` inputs fills too little of what this one takes."""
        if self.alone is None or not (self.multiplies_matrices or self.sums.parts > 1):
            return self
        if self.multiplies_matrices:
            return self if fills_matrices(run, self.group, self.packed.inputs) else self.alone
        return self if math.ceil(run / self.group) * self.group <= _MOST_FILLING * run else self.alone

    def packed_run(self, run: int) -> int:
        """Inputs of a stretch of `run` in shared packed weights: filled up to what the widest step of these takes."""
        if self.activation == "int8":
            group = _FILLED_ARM
        else:
            matrix, group = self._matrix_inputs, self.packed.inputs or self.group
            group = matrix if matrix and fills_matrices(run, matrix, group) else group
        return math.ceil(run / group) * group

    @property
    def _matrix_inputs(self) -> int:
        """Inputs of a row of a tile register, where weights are packed for instruction sets that have these; else 0."""
        if self.quantized:
            return MATRIX_INPUTS
        return MATRIX_INPUTS // 2 if self.weight == "uint16" and self.fills_lines else 0
