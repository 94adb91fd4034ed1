"""AMX: products of matrices in tile registers, as the calls that LLVM makes one instruction of each.

A tile register holds up to 16 rows of 64 bytes; `configure` says how many of each. Registers are numbers that must be
constants in the code, so that loops over them are unrolled. Nothing moves between tiles and vectors but through memory.
The process must have asked the kernel for the registers' state first (`runtime/cpu.c`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploykit_targets.tvm.kernels.expressions import Expr
from deploykit_targets.tvm.kernels.script import T

ROW_BYTES = 64
WORDS = 8
"""64-bit words of the block that `configure` reads."""


def configuration(rows: Sequence[int]) -> Expr:
    """The block that gives each tile register its rows, all of 64 bytes, as a vector of 64-bit words.

    Args:
        rows: the rows of registers 0 to 7; those beyond the end are unused.
    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, LDTILECFG: palette 1, 16-bit bytes per row
    from byte 16, 8-bit rows from byte 48.
    """
    block = np.zeros(64, np.uint8)
    block[0] = 1
    for register, count in enumerate(rows):
        block[16 + 2 * register] = ROW_BYTES
        block[48 + register] = count
    words = [T.IntImm("int64", int(word)) for word in block.view(np.int64)]
    return T.Shuffle(words, list(range(WORDS)))


def _call(name: str, *arguments: Expr) -> Expr:
    return T.call_llvm_intrin("void", T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}"), *arguments)


def configure(block: Expr) -> Expr:
    """Take the shapes of `configuration`, a buffer of int64; all tiles are zero then."""
    return _call("ldtilecfg", T.address_of(block[0]))


def release() -> Expr:
    """Leave the unit idle, so that switching threads saves no tiles."""
    return _call("tilerelease")


def zero(tile: Expr) -> Expr:
    """Clear an accumulator."""
    return _call("tilezero", _number(tile))


def load(tile: Expr, buffer: Expr, index: Expr, stride_bytes: int) -> Expr:
    """Read the rows of a tile, `stride_bytes` apart, the first one at an element of a buffer."""
    return _call("tileloadd64", _number(tile), T.address_of(buffer[index]), T.int64(stride_bytes))


def store(tile: Expr, buffer: Expr, index: Expr, stride_bytes: int) -> Expr:
    """Write the rows of a tile."""
    return _call("tilestored64", _number(tile), T.address_of(buffer[index]), T.int64(stride_bytes))


def multiply(instruction: str, sums: Expr, activations: Expr, weights: Expr) -> Expr:
    """sums[m, n] += activations[m, g * k + i] * weights[k, g * n + i] for `g` inputs that lie beside each other.

    Args:
        instruction: `tdpbusd`, four bytes, unsigned times signed, exact in int32; or `tdpbf16ps`, two of bfloat16,
            whose sums are float32.
    """
    return _call(instruction, _number(sums), _number(activations), _number(weights))


def _number(tile: Expr) -> Expr:
    return T.Cast("int8", tile)
