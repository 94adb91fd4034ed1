"""bfloat16 in kernels: the upper half of a float32, held as its bits; NumPy and TVM's passes have no such type.

Widening to float32 is a shift and exact; narrowing rounds half to even, and every NaN becomes a quiet one. Both are
arithmetic on integers, the same on every CPU, so that variants of a library round alike.
"""

from __future__ import annotations

import numpy as np

from deploykit_targets.tvm.kernels.expressions import Affine, Expr, cast, clip, fill, limits_of, quantized
from deploykit_targets.tvm.kernels.packing import Array
from deploykit_targets.tvm.kernels.script import T

BFLOAT16 = "uint16"
"""The dtype in memory; no other value of a program has it."""
AS_FLOAT = Affine(1.0, 0)
"""What such a value has where one of eight bits has scale and zero point: it means real numbers, as these do."""
_QUIET_NAN, _INFINITY, _MAGNITUDE = 0x7FC0, 0x7F800000, 0x7FFFFFFF


def to_bits(array: Array) -> Array:
    """float32 numbers as bfloat16, rounded half to even.

    Args:
        array: any shape.
    Returns:
        uint16, same shape.
    """
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    quiet = np.where(np.isnan(array), np.uint32(_QUIET_NAN), rounded)
    found: Array = quiet.astype(np.uint16).reshape(np.shape(array))
    return found


def from_bits(array: Array) -> Array:
    """The float32 numbers that bfloat16 bits stand for, same shape."""
    found: Array = (np.ascontiguousarray(array, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return found.reshape(np.shape(array))


def widened(value: Expr, lanes: int) -> Expr:
    """bfloat16 bits -> float32, exact."""
    return _float(cast(value, "uint32", lanes) << fill(16, "uint32", lanes), lanes)


def narrowed(value: Expr, lanes: int) -> Expr:
    """float32 -> bfloat16 bits, rounded half to even."""
    bits = T.reinterpret(_lanes("uint32", lanes), value)
    odd = (bits >> fill(16, "uint32", lanes)) & fill(1, "uint32", lanes)
    rounded = (bits + (odd + fill(0x7FFF, "uint32", lanes))) >> fill(16, "uint32", lanes)
    magnitude = T.reinterpret(_lanes("int32", lanes), bits & fill(_MAGNITUDE, "uint32", lanes))
    number = magnitude <= fill(_INFINITY, "int32", lanes)
    return cast(T.Select(number, rounded, fill(_QUIET_NAN, "uint32", lanes)), BFLOAT16, lanes)


def halves(pairs: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Pairs of neighbours, 32 bits each, as float32: all the first ones, and all the second ones."""
    first = pairs << fill(16, "uint32", lanes)
    second = pairs & fill(0xFFFF0000, "uint32", lanes)
    return _float(first, lanes), _float(second, lanes)


def real(value: Expr, dtype: str, lanes: int) -> Expr:
    """A value in memory, float32 or bfloat16, as float32."""
    return widened(value, lanes) if dtype == BFLOAT16 else value


def stored(value: Expr, limits: tuple[float, float] | None, dtype: str, lanes: int) -> Expr:
    """float32 as it goes to memory: clipped, and rounded where `dtype` is narrower.

    Args:
        limits: in units of what is stored; None clips eight bits to all that they have, and others not at all.
        dtype: float32, bfloat16's, or eight bits.
    """
    if dtype not in ("float32", BFLOAT16):
        return quantized(value, limits or limits_of(dtype), dtype, lanes)
    clipped = value if limits is None else clip(value, limits, "float32", lanes)
    return narrowed(clipped, lanes) if dtype == BFLOAT16 else clipped


def _lanes(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _float(bits: Expr, lanes: int) -> Expr:
    return T.reinterpret(_lanes("float32", lanes), bits)
