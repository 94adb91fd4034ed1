"""Activations, element by element."""

from __future__ import annotations

import math

from deploykit_targets.tvm.kernels import vector_math
from deploykit_targets.tvm.kernels.expressions import Expr
from deploykit_targets.tvm.kernels.script import T
from deploykit_targets.tvm.ops.elementwise import Vectors, rule


@rule("relu.default")
def _relu(v: Vectors) -> Expr:
    return T.max(v["self"], v.number(0))


@rule("relu6.default")
def _relu6(v: Vectors) -> Expr:
    return T.max(T.min(v["self"], v.number(6)), v.number(0))


@rule("hardtanh.default")
def _hardtanh(v: Vectors) -> Expr:
    return T.max(T.min(v["self"], v["max_val"]), v["min_val"])


@rule("clamp.default", "clamp.Tensor")
def _clamp(v: Vectors) -> Expr:
    x = v["self"]
    x = x if v.plain("min") is None else T.max(x, v["min"])
    return x if v.plain("max") is None else T.min(x, v["max"])


@rule("silu.default", costly=True)
def _silu(v: Vectors) -> Expr:
    return v["self"] * vector_math.sigmoid(v["self"], v.lanes)


@rule("gelu.default", costly=True)
def _gelu(v: Vectors) -> Expr:
    x, half = v["self"], v.number(0.5)
    if v.plain("approximate") == "tanh":
        inner = v.number(math.sqrt(2 / math.pi)) * (x + v.number(0.044715) * x * x * x)
        return half * x * (v.number(1) + vector_math.tanh(inner, v.lanes))
    return half * x * (v.number(1) + vector_math.erf(x * v.number(math.sqrt(0.5)), v.lanes))


def _gate(v: Vectors, x: Expr) -> Expr:
    """min(max(x + 3, 0), 6) / 6."""
    return T.max(T.min(x + v.number(3), v.number(6)), v.number(0)) * v.number(1 / 6)


@rule("hardswish.default", costly=True)
def _hardswish(v: Vectors) -> Expr:
    return v["self"] * _gate(v, v["self"])


@rule("hardsigmoid.default", costly=True)
def _hardsigmoid(v: Vectors) -> Expr:
    return _gate(v, v["self"])


@rule("leaky_relu.default")
def _leaky_relu(v: Vectors) -> Expr:
    x, zero = v["self"], v.number(0)
    return v.where(x > zero, x, x * v.number(v.plain("negative_slope")))


@rule("elu.default", costly=True)
def _elu(v: Vectors) -> Expr:
    x, scale = v["self"] * v.number(v.plain("input_scale")), v.number(v.plain("scale"))
    negative = (vector_math.exp(T.min(x, v.number(0)), v.lanes) - v.number(1)) * v.number(v.plain("alpha"))
    return scale * v.where(v["self"] > v.number(0), v["self"], negative)


def _softplus_of(v: Vectors, x: Expr) -> Expr:
    """log(1 + e**x), without overflow."""
    size = T.max(x, v.number(0) - x)
    return T.max(x, v.number(0)) + T.log(v.number(1) + vector_math.exp(v.number(0) - size, v.lanes))


@rule("softplus.default", costly=True)
def _softplus(v: Vectors) -> Expr:
    x, beta = v["self"], v.number(v.plain("beta"))
    soft = _softplus_of(v, x * beta) / beta
    return v.where(x * beta > v.number(v.plain("threshold")), x, soft)


@rule("mish.default", costly=True)
def _mish(v: Vectors) -> Expr:
    return v["self"] * vector_math.tanh(_softplus_of(v, v["self"]), v.lanes)


@rule("log_sigmoid.default", costly=True)
def _log_sigmoid(v: Vectors) -> Expr:
    return v.number(0) - _softplus_of(v, v.number(0) - v["self"])
