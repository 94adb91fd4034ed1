# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Kernels that treat every element alike: quantise, dequantise, requantise, residual addition.

Arithmetic is float32, also between quantized tensors; results are rounded half to even, then clipped.
Refused: broadcasting between tensors of different shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from deploykit_targets.tvm.kernels.expressions import (
    Affine,
    Expr,
    clip,
    fill,
    limits_of,
    quantized,
    span,
    vector_lanes,
    vector_start,
    widen,
)
from deploykit_targets.tvm.kernels.script import T

_LANES = 16
_VECTORS_PER_TASK = 256  # a thread's share is 4096 elements: less costs more to hand out than to compute


def quantize(length: int, dtype: str, to: Affine) -> Expr:
    """float32 -> `dtype`: (input, output), flat, `length` elements."""
    return _unary(length, "float32", dtype, lambda x, n: _quantized(x, to, dtype, n))


def dequantize(length: int, dtype: str, of: Affine) -> Expr:
    """`dtype` -> float32: (input, output), flat, `length` elements."""
    return _unary(length, dtype, "float32", lambda x, n: _real(x, of, n))


def requantize(length: int, source: str, dtype: str, of: Affine, to: Affine) -> Expr:
    """From one scale, zero point and eight-bit dtype to another: (input, output), flat, `length` elements."""
    return _unary(length, source, dtype, lambda x, n: requantized(x, of, to, dtype, n))


def add_quantized(
    length: int, dtype: str, of: tuple[Affine, Affine], to: Affine, *, limits: tuple[float, float] | None = None
) -> Expr:
    """Residual addition of quantized tensors: (first, second, output), flat, `length` elements.

    Args:
        of: quantization of both inputs.
        to: scale and zero point of the output.
        limits: clip the result to these (a fused activation), in quantized units.
    """
    first, second = of[0].scale / to.scale, of[1].scale / to.scale
    offset = to.zero_point - of[0].zero_point * first - of[1].zero_point * second

    def value(a: Expr, b: Expr, n: int) -> Expr:
        scaled = widen(b, n) * fill(second, "float32", n) + fill(offset, "float32", n)
        return quantized(widen(a, n) * fill(first, "float32", n) + scaled, limits or limits_of(dtype), dtype, n)

    return _binary(length, dtype, value)


def add(length: int, *, limits: tuple[float, float] | None = None) -> Expr:
    """Residual addition of float32 tensors: (first, second, output), flat; `limits` clip the result."""
    return _binary(length, "float32", lambda a, b, n: a + b if limits is None else clip(a + b, limits, "float32", n))


def requantized(value: Expr, of: Affine, to: Affine, dtype: str, lanes: int) -> Expr:
    """An eight-bit vector at another scale and zero point; the same vector where nothing changes."""
    if of == to:
        return value
    ratio = of.scale / to.scale
    offset = fill(to.zero_point - of.zero_point * ratio, "float32", lanes)
    return quantized(widen(value, lanes) * fill(ratio, "float32", lanes) + offset, limits_of(dtype), dtype, lanes)


def _quantized(value: Expr, to: Affine, dtype: str, lanes: int) -> Expr:
    """Divides, as ONNX defines it: a product with the reciprocal rounds differently at ties."""
    low, high = limits_of(dtype)
    limits = (low - to.zero_point, high - to.zero_point)
    rounded = T.nearbyint(clip(value / fill(to.scale, "float32", lanes), limits, "float32", lanes))
    return quantized(rounded + fill(to.zero_point, "float32", lanes), (low, high), dtype, lanes)


def _real(value: Expr, of: Affine, lanes: int) -> Expr:
    return (widen(value, lanes) - fill(of.zero_point, "float32", lanes)) * fill(of.scale, "float32", lanes)


def _split(length: int) -> tuple[int, int, int, int]:
    """(lanes, vectors, vectors per task, tasks) of a line of `length` elements."""
    lanes = vector_lanes(length, _LANES)
    vectors = math.ceil(length / lanes)
    share = min(vectors, _VECTORS_PER_TASK)
    return lanes, vectors, share, math.ceil(vectors / share)


def _unary(length: int, source: str, dtype: str, value: Callable[[Expr, int], Expr]) -> Expr:
    lanes, vectors, share, tasks = _split(length)

    def at(task: Expr, v: Expr) -> Expr:
        return span(vector_start(vector_start(task, share, vectors) + v, lanes, length), lanes)

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((length,), source), y: T.Buffer((length,), dtype)):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(tasks):
            for v in T.serial(share):
                y[at(task, v)] = value(a[at(task, v)], lanes)

    return kernel


def _binary(length: int, dtype: str, value: Callable[[Expr, Expr, int], Expr]) -> Expr:
    lanes, vectors, share, tasks = _split(length)

    def at(task: Expr, v: Expr) -> Expr:
        return span(vector_start(vector_start(task, share, vectors) + v, lanes, length), lanes)

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((length,), dtype), b: T.Buffer((length,), dtype), y: T.Buffer((length,), dtype)):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(tasks):
            for v in T.serial(share):
                y[at(task, v)] = value(a[at(task, v)], b[at(task, v)], lanes)

    return kernel
