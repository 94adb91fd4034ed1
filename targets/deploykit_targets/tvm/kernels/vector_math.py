"""Functions of float32 vectors as arithmetic, where LLVM would call the C library once for each lane.

Errors were measured against float64 over the ranges in `tests/targets/tvm/kernels/test_vector_math.py`.
"""

from __future__ import annotations

import math

from deploykit_targets.tvm.kernels.expressions import Expr, clip, fill, fma
from deploykit_targets.tvm.kernels.script import T

_EXP_LIMITS = (-87.3, 88.7)  # beyond, float32 has no normal number
_LN2_HIGH, _LN2_LOW = 0.693359375, math.log(2) - 0.693359375  # the first has nine bits: products with it are exact
_ROUND = 1.5 * 2**23  # a sum with it has the rounded value in its lowest bits


def exp(x: Expr, lanes: int) -> Expr:
    """e to the x: 2**n * e**r with |r| <= ln(2) / 2, the latter by its series of seven terms; relative error 3e-7."""

    def number(value: float) -> Expr:
        return fill(value, "float32", lanes)

    x = clip(x, _EXP_LIMITS, "float32", lanes)
    # As a call: TVM would simplify (y + c) - c to y.
    shifted = fma(x, number(1 / math.log(2)), number(_ROUND), lanes)
    n = shifted - number(_ROUND)
    r = fma(n, number(-_LN2_LOW), fma(n, number(-_LN2_HIGH), x, lanes), lanes)
    series = number(1 / math.factorial(6))
    for k in range(5, -1, -1):
        series = fma(series, r, number(1 / math.factorial(k)), lanes)
    # The lowest bits of `shifted` are n: moved to the exponent, they double the result n times.
    integer = "int32" if lanes == 1 else f"int32x{lanes}"
    bits = T.reinterpret(integer, series) + T.shift_left(T.reinterpret(integer, shifted), fill(23, "int32", lanes))
    return T.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", bits)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e**-x)."""
    one = fill(1, "float32", lanes)
    return one / (one + exp(fill(0, "float32", lanes) - x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """Hyperbolic tangent, as 1 - 2 / (e**2x + 1)."""
    one, two = fill(1, "float32", lanes), fill(2, "float32", lanes)
    return one - two / (exp(two * x, lanes) + one)


_ERF_T = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def erf(x: Expr, lanes: int) -> Expr:
    """Error function; absolute error 5e-7. Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26."""
    zero, one = fill(0, "float32", lanes), fill(1, "float32", lanes)
    size = T.max(x, zero - x)
    t = one / (one + fill(_ERF_T, "float32", lanes) * size)
    series = fill(_ERF[0], "float32", lanes)
    for coefficient in _ERF[1:]:
        series = fma(series, t, fill(coefficient, "float32", lanes), lanes)
    positive = one - series * t * exp(zero - size * size, lanes)
    return T.Select(x < zero, zero - positive, positive)
