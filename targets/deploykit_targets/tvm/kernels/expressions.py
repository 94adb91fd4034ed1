"""Small TIR expressions that all kernels share: contiguous vectors, rounding, clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tvm.ir import PointerType, PrimType
from tvm.tirx import call_intrin

from deploykit_targets.tvm.kernels.script import T

Expr = Any  # a tvm PrimExpr or Buffer; TVM ships no types


class Affine(NamedTuple):
    """Per-tensor quantization: `real = (quantized - zero_point) * scale`."""

    scale: float
    zero_point: int


_SATURATED = 8  # integers
UNSCALED = Affine(1.0, 0)
_ELEMENT_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int32": 4, "float32": 4, "int64": 8}


def span(start: Expr, lanes: int) -> Expr:
    """Index of `lanes` neighbours from `start`; a plain index for one."""
    return start if lanes == 1 else T.Ramp(start, 1, lanes)


def fill(value: float, dtype: str, lanes: int) -> Expr:
    """`value` in each lane."""
    constant = T.FloatImm(dtype, value) if dtype == "float32" else T.IntImm(dtype, int(value))
    return spread(constant, lanes)


def spread(value: Expr, lanes: int) -> Expr:
    """A scalar in each lane."""
    return value if lanes == 1 else T.Broadcast(value, lanes)


def on_stack(elements: int, dtype: str) -> Expr:
    """A pointer to memory of the calling function, for a buffer that LLVM then keeps in registers.

    `T.alloc_buffer` calls an allocator, whatever the size. Bind the pointer (`where: T.let = ...`), then declare the
    buffer: `T.decl_buffer((elements,), dtype, data=where, scope="local")`.
    """
    words = -(-elements * _ELEMENT_BYTES[dtype] // 8)
    kind = PointerType(PrimType(dtype), "local")
    return call_intrin(kind, "tirx.tvm_stack_alloca", "shape", words)


def prefetch(buffer: Expr, index: Expr) -> Expr:
    """Ask for a cache line that will be read soon, in the second-level cache; any address is allowed."""
    to_read, second_level, data = T.int32(0), T.int32(2), T.int32(1)
    intrinsic = T.llvm_lookup_intrinsic_id("llvm.prefetch")
    return T.call_llvm_intrin("void", intrinsic, T.address_of(buffer[index]), to_read, second_level, data)


def in_turn() -> Expr:
    """Nothing (Arm's `nop`), past which LLVM moves neither loads nor stores.

    LLVM brings as many independent sums of a long stretch forward as it finds, and then has no registers for them. What
    follows one another in the code runs beside each other all the same. Loads are also made again after it: a register
    that two sums start from would be copied by the units that multiply.
    """
    return T.call_llvm_intrin("void", T.llvm_lookup_intrinsic_id("llvm.aarch64.hint"), T.int32(0))


def pick(vector: Expr, index: Expr, count: int) -> Expr:
    """Part `index` of `count` equal parts of a vector of bytes, each of 32 bits; of one part, the vector."""
    if count == 1:
        return vector
    return T.reinterpret("int8x4", T.Shuffle([T.reinterpret(f"int32x{count}", vector)], [index]))


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    """`value` as `dtype`, lane by lane."""
    return T.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def widen(value: Expr, lanes: int) -> Expr:
    """A quantized value of eight bits as float32, by way of int32, as the instruction sets have it."""
    return cast(cast(value, "int32", lanes), "float32", lanes)


def fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """float32 `a * b + c`, rounded once."""
    return T.call_llvm_pure_intrin(
        "float32" if lanes == 1 else f"float32x{lanes}", T.llvm_lookup_intrinsic_id("llvm.fma"), a, b, c
    )


def clip(value: Expr, limits: tuple[float, float], dtype: str, lanes: int) -> Expr:
    """`value` between both limits."""
    low, high = limits
    return T.max(T.min(value, fill(high, dtype, lanes)), fill(low, dtype, lanes))


def quantized(value: Expr, limits: tuple[float, float], dtype: str, lanes: int) -> Expr:
    """float32 -> `dtype`: rounded half to even, clipped to `limits`.

    Clipped before it is rounded: limits are integers, so that the result is the same. Then the sum with 1.5 * 2**23 has
    the rounded value in its lowest bits: one addition instead of a rounding and a conversion, on every instruction set.
    """
    shifted = clip(value, limits, "float32", lanes) + fill(1.5 * 2**23, "float32", lanes)
    return cast(T.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", shifted), dtype, lanes)


def bounded(sums: Expr, scale: Expr, shift: Expr, lanes: int) -> Expr:
    """int32 sums -> their results, rounded half to even, as float32 and 1.5 * 2**23 more (`packing.Bounded`).

    Sums are the bits of float32 without a conversion; the product is rounded once, by the sum with the shift.

    Args:
        sums: int32, from the starts of `packing.Bounded`.
        scale, shift: float32, of the same.
    """
    return fma(T.reinterpret(f"float32x{lanes}", sums), scale, shift, lanes)


def saturated(shifted: Expr, lanes: int, limits: tuple[float, float], saturate: Callable[[Expr], Expr]) -> Expr:
    """float32 of integers of 16 bits, and 1.5 * 2**23 more -> int8, clipped: the lowest 16 bits are the integer.

    Args:
        saturate: eight integers of 16 bits -> of 8 (`Dot.saturate`).
    """
    narrow = cast(T.reinterpret(f"int32x{lanes}", shifted), "int16", lanes)
    value = saturate(narrow) if lanes == _SATURATED else _in_parts(narrow, lanes, saturate)
    low, high = limits
    if low > -128:
        value = T.max(value, fill(low, "int8", lanes))
    return T.min(value, fill(high, "int8", lanes)) if high < 127 else value


def _in_parts(value: Expr, lanes: int, saturate: Callable[[Expr], Expr]) -> Expr:
    starts = range(0, lanes, _SATURATED)
    parts = [saturate(T.Shuffle([value], list(range(start, start + _SATURATED)))) for start in starts]
    return T.Shuffle(parts, list(range(lanes)))


def rounded(value: Expr, limits: tuple[float, float], lanes: int) -> Expr:
    """float32 -> float32: what `quantized` returns, without leaving float32."""
    return T.nearbyint(clip(value, limits, "float32", lanes))


def fold(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of a vector combined to a scalar, in halves. The vector is evaluated `lanes` times: pass a load."""
    while lanes > 1:
        lanes //= 2
        low, high = (list(range(start, start + lanes)) for start in (0, lanes))
        vector = combine(T.Shuffle([vector], low), T.Shuffle([vector], high))
    return vector


def limits_of(dtype: str) -> tuple[int, int]:
    """Smallest and largest value of an eight-bit dtype."""
    return (0, 255) if dtype == "uint8" else (-128, 127)


def vector_lanes(length: int, preferred: int) -> int:
    """The largest power of two that is at most `preferred` and `length`."""
    return 1 << (min(length, preferred).bit_length() - 1)


def vector_start(index: Expr, lanes: int, length: int) -> Expr:
    """Where vector `index` of a line of `length` starts: the last overlaps the one before instead of ending early."""
    return index * lanes if length % lanes == 0 else T.min(index * lanes, length - lanes)
