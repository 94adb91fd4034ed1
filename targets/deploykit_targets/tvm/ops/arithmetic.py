"""Sums, products, powers, roundings, and functions of one number, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from deploykit_targets.tvm.kernels import vector_math
from deploykit_targets.tvm.kernels.expressions import Expr
from deploykit_targets.tvm.kernels.script import T
from deploykit_targets.tvm.ops.elementwise import Rule, Vectors, rule


def _scaled(v: Vectors, name: str) -> Expr:
    alpha = v.plain("alpha")
    return v[name] if alpha in (None, 1) else v[name] * v.number(alpha)


@rule("add.Tensor", "add.Scalar")
def _add(v: Vectors) -> Expr:
    return T.Or(v["self"], v["other"]) if v.dtype == "bool" else v["self"] + _scaled(v, "other")


@rule("sub.Tensor", "sub.Scalar")
def _sub(v: Vectors) -> Expr:
    return v["self"] - _scaled(v, "other")


@rule("rsub.Scalar", "rsub.Tensor")
def _rsub(v: Vectors) -> Expr:
    return v["other"] - _scaled(v, "self")


@rule("mul.Tensor", "mul.Scalar")
def _mul(v: Vectors) -> Expr:
    return T.And(v["self"], v["other"]) if v.dtype == "bool" else v["self"] * v["other"]


@rule("div.Tensor", "div.Scalar")
def _div(v: Vectors) -> Expr:
    return v["self"] / v["other"]


@rule("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(v: Vectors) -> Expr:
    mode = v.plain("rounding_mode")
    if v.dtype == "float32":
        quotient = v["self"] / v["other"]
        return quotient if mode is None else T.floor(quotient) if mode == "floor" else T.trunc(quotient)
    return T.floordiv(v["self"], v["other"]) if mode == "floor" else T.truncdiv(v["self"], v["other"])


@rule("floor_divide.default")
def _floor_divide(v: Vectors) -> Expr:
    return T.floor(v["self"] / v["other"]) if v.dtype == "float32" else T.floordiv(v["self"], v["other"])


@rule("remainder.Scalar", "remainder.Tensor")
def _remainder(v: Vectors) -> Expr:
    if v.dtype == "float32":
        return v["self"] - T.floor(v["self"] / v["other"]) * v["other"]
    return T.floormod(v["self"], v["other"])


@rule("fmod.Scalar", "fmod.Tensor")
def _fmod(v: Vectors) -> Expr:
    if v.dtype == "float32":
        return v["self"] - T.trunc(v["self"] / v["other"]) * v["other"]
    return T.truncmod(v["self"], v["other"])


@rule("neg.default")
def _neg(v: Vectors) -> Expr:
    return v.number(0) - v["self"]


@rule("abs.default")
def _abs(v: Vectors) -> Expr:
    return T.max(v["self"], v.number(0) - v["self"])


@rule("sign.default")
def _sign(v: Vectors) -> Expr:
    x, zero = v["self"], v.number(0)
    return v.where(x > zero, v.number(1), v.where(x < zero, v.number(-1), zero))


@rule("square.default")
def _square(v: Vectors) -> Expr:
    return v["self"] * v["self"]


@rule("rsqrt.default")
def _rsqrt(v: Vectors) -> Expr:
    return v.number(1) / T.sqrt(v["self"])


@rule("reciprocal.default")
def _reciprocal(v: Vectors) -> Expr:
    return v.number(1) / v["self"]


@rule("pow.Tensor_Scalar", costly=True)
def _pow(v: Vectors) -> Expr:
    x, exponent = v["self"], float(v.plain("exponent"))
    if exponent == int(exponent) and 0 <= exponent <= 8:
        result = v.number(1)
        for _ in range(int(exponent)):
            result = result * x
        return result
    roots = {0.5: T.sqrt, -0.5: lambda a: v.number(1) / T.sqrt(a), -1.0: lambda a: v.number(1) / a}
    if exponent in roots:
        return roots[exponent](x)
    return T.pow(x, v.number(exponent))


@rule("pow.Tensor_Tensor", costly=True)
def _pow_tensor(v: Vectors) -> Expr:
    return T.pow(v["self"], v["exponent"])


@rule("pow.Scalar", costly=True)
def _pow_scalar(v: Vectors) -> Expr:
    return vector_math.exp(v["exponent"] * v.number(math.log(v.plain("self"))), v.lanes)


@rule("maximum.default", "max.other", "clamp_min.default", "clamp_min.Tensor")
def _maximum(v: Vectors) -> Expr:
    return T.max(v["self"], v["other" if "other" in v.arguments else "min"])


@rule("minimum.default", "min.other", "clamp_max.default", "clamp_max.Tensor")
def _minimum(v: Vectors) -> Expr:
    return T.min(v["self"], v["other" if "other" in v.arguments else "max"])


@rule("log2.default", costly=True)
def _log2(v: Vectors) -> Expr:
    return T.log(v["self"]) * v.number(1 / math.log(2))


@rule("log10.default", costly=True)
def _log10(v: Vectors) -> Expr:
    return T.log(v["self"]) * v.number(1 / math.log(10))


@rule("exp2.default", costly=True)
def _exp2(v: Vectors) -> Expr:
    return vector_math.exp(v["self"] * v.number(math.log(2)), v.lanes)


@rule("expm1.default", costly=True)
def _expm1(v: Vectors) -> Expr:
    return vector_math.exp(v["self"], v.lanes) - v.number(1)


@rule("log1p.default", costly=True)
def _log1p(v: Vectors) -> Expr:
    return T.log(v["self"] + v.number(1))


_OF_ONE: Mapping[str, Callable[[Expr], Expr]] = {
    "sqrt": T.sqrt,
    "floor": T.floor,
    "ceil": T.ceil,
    "trunc": T.trunc,
    "round": T.nearbyint,
}
_COSTLY: Mapping[str, Callable[[Expr], Expr]] = {"log": T.log, "sin": T.sin, "cos": T.cos, "tan": T.tan, "atan": T.atan}
_APPROXIMATED: Mapping[str, Callable[[Expr, int], Expr]] = {
    "exp": vector_math.exp,
    "erf": vector_math.erf,
    "sigmoid": vector_math.sigmoid,
    "tanh": vector_math.tanh,
}
"""By polynomials: a function of a vector, and its lanes."""


def _of_one(function: Callable[[Expr], Expr]) -> Rule:
    return lambda v: function(v["self"])


def _approximated(function: Callable[[Expr, int], Expr]) -> Rule:
    return lambda v: function(v["self"], v.lanes)


for _name, _function in _OF_ONE.items():
    rule(f"{_name}.default")(_of_one(_function))
for _name, _function in _COSTLY.items():
    rule(f"{_name}.default", costly=True)(_of_one(_function))
for _name, _polynomial in _APPROXIMATED.items():
    rule(f"{_name}.default", costly=True)(_approximated(_polynomial))
