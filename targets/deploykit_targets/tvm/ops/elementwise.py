"""Arithmetic element by element: each operator is a function of vectors, computed when a kernel needs the result.

A rule gets the operator's arguments by name: tensors as vectors of the dtype that it computes in, numbers as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from deploykit.capture.calls import bind
from deploykit_targets.tvm.bfloat16 import is_narrowing, is_widening
from deploykit_targets.tvm.expression import COSTLY, truth
from deploykit_targets.tvm.kernels import vector_math
from deploykit_targets.tvm.kernels.expressions import Expr, fill
from deploykit_targets.tvm.kernels.script import T
from deploykit_targets.tvm.ops.quantisation import narrow
from deploykit_targets.tvm.ops.table import Call, NotCoveredError, consumers, dtype_name, lowers
from deploykit_targets.tvm.values import Constant, Lazy, Tensor


@dataclass(frozen=True, eq=False)
class Vectors:
    """The arguments of one operator inside a kernel.

    Attributes:
        arguments: the arguments, by schema name.
        dtype: the dtype that it computes in.
        lanes: the lanes of all vectors.
    """

    arguments: Mapping[str, Any]
    dtype: str
    lanes: int

    def __getitem__(self, name: str) -> Expr:
        """An argument as a vector."""
        value = self.arguments[name]
        return self.number(value) if isinstance(value, (bool, int, float)) else value

    def plain(self, name: str) -> Any:
        """An argument that is a number, a string or None."""
        return self.arguments.get(name)

    def number(self, value: float) -> Expr:
        """A number in each lane."""
        if self.dtype == "bool":
            return truth(bool(value), self.lanes)
        return fill(_finite(value), self.dtype, self.lanes)

    def where(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """Lane by lane."""
        return T.Select(condition, yes, no)


def _finite(value: float) -> float:
    """Masks use infinity, whose arithmetic TVM's constants do not take."""
    return max(min(value, 3.4028234663852886e38), -3.4028234663852886e38)


Rule = Callable[[Vectors], Expr]


@dataclass(frozen=True)
class Operator:
    """How one overload is computed.

    Attributes:
        rule: the function.
        inputs: it computes in the dtype of its arguments (comparisons), not in that of its result.
        costly: a table is quicker, where a table can do it.
    """

    rule: Rule
    inputs: bool = False
    costly: bool = False


_OPERATORS: dict[str, Operator] = {}


def _rule(*targets: str, inputs: bool = False, costly: bool = False) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for target in targets:
            _OPERATORS[f"aten.{target}"] = Operator(rule, inputs, costly)
            lowers(f"aten.{target}")(elementwise)
        return rule

    return register


def elementwise(c: Call) -> Tensor:
    """A lazy value over the operator's tensors."""
    if is_narrowing(c.node):
        return narrow(c)
    if is_widening(c.node):
        return c.tensor("self")
    operator = _OPERATORS[str(c.node.target)]
    names = [name for name, value in c.arguments.items() if isinstance(value, Node)]
    tensors = tuple(c.lowering.tensor(c.arguments[name]) for name in names)
    if all(isinstance(tensor, Constant) for tensor in tensors):
        return _folded(c, names, tensors)
    dtype = _compute_dtype(c, operator)
    plain = {name: value for name, value in c.arguments.items() if name not in names}

    def compute(vectors: list[Expr], lanes: int) -> Expr:
        return operator.rule(Vectors({**plain, **dict(zip(names, vectors, strict=True))}, dtype, lanes))

    def run(*arguments: torch.Tensor) -> torch.Tensor:
        return _eager(c.node, names, arguments)

    mark = COSTLY if operator.costly else ""
    return Lazy(
        c.shape,
        c.dtype,
        compute,
        tensors,
        tuple("bool" if name in {"condition", "mask"} else dtype for name in names),
        f"{c.node.target}{mark}[{dtype},{names},{plain}]",
        run,
        shared=consumers(c.node) > 1,
    )


def converted_value(value: Tensor, dtype: str) -> Lazy:
    """A value as another dtype."""
    wanted = getattr(torch, dtype)
    return Lazy(value.shape, dtype, lambda v, _: v[0], (value,), (dtype,), f"to[{dtype}]", lambda x: x.to(wanted))


def _eager(node: Node, names: list[str], tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The operator itself on torch tensors."""
    replaced = {id(bind(node)[name]): tensor for name, tensor in zip(names, tensors, strict=True)}
    arguments = [replaced.get(id(a), a) for a in node.args]
    keywords = {k: replaced.get(id(a), a) for k, a in node.kwargs.items()}
    target: Any = node.target
    result: torch.Tensor = target(*arguments, **keywords)
    return result


def _folded(c: Call, names: list[str], tensors: tuple[Tensor, ...]) -> Constant:
    known = [torch.from_numpy(t.real.copy()) for t in tensors if isinstance(t, Constant)]
    return Constant(_eager(c.node, names, tuple(known)).contiguous().numpy())


def _compute_dtype(c: Call, operator: Operator) -> str:
    if not operator.inputs:
        return _known(c.dtype)
    values = [a.meta["val"] if isinstance(a, Node) else a for n, a in c.arguments.items() if n in ("self", "other")]
    dtype = torch.result_type(*values) if len(values) > 1 else values[0].dtype
    return _known(dtype_name(dtype))


def _known(dtype: str) -> str:
    if dtype not in ("float32", "int32", "int64", "bool", "uint8", "int8"):
        raise NotCoveredError(f"it computes in {dtype}")
    return dtype


# Arithmetic.


def _scaled(v: Vectors, name: str) -> Expr:
    alpha = v.plain("alpha")
    return v[name] if alpha in (None, 1) else v[name] * v.number(alpha)


@_rule("add.Tensor", "add.Scalar")
def _add(v: Vectors) -> Expr:
    return T.Or(v["self"], v["other"]) if v.dtype == "bool" else v["self"] + _scaled(v, "other")


@_rule("sub.Tensor", "sub.Scalar")
def _sub(v: Vectors) -> Expr:
    return v["self"] - _scaled(v, "other")


@_rule("rsub.Scalar", "rsub.Tensor")
def _rsub(v: Vectors) -> Expr:
    return v["other"] - _scaled(v, "self")


@_rule("mul.Tensor", "mul.Scalar")
def _mul(v: Vectors) -> Expr:
    return T.And(v["self"], v["other"]) if v.dtype == "bool" else v["self"] * v["other"]


@_rule("div.Tensor", "div.Scalar")
def _div(v: Vectors) -> Expr:
    return v["self"] / v["other"]


@_rule("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(v: Vectors) -> Expr:
    mode = v.plain("rounding_mode")
    if v.dtype == "float32":
        quotient = v["self"] / v["other"]
        return quotient if mode is None else T.floor(quotient) if mode == "floor" else T.trunc(quotient)
    return T.floordiv(v["self"], v["other"]) if mode == "floor" else T.truncdiv(v["self"], v["other"])


@_rule("floor_divide.default")
def _floor_divide(v: Vectors) -> Expr:
    return T.floor(v["self"] / v["other"]) if v.dtype == "float32" else T.floordiv(v["self"], v["other"])


@_rule("remainder.Scalar", "remainder.Tensor")
def _remainder(v: Vectors) -> Expr:
    if v.dtype == "float32":
        return v["self"] - T.floor(v["self"] / v["other"]) * v["other"]
    return T.floormod(v["self"], v["other"])


@_rule("fmod.Scalar", "fmod.Tensor")
def _fmod(v: Vectors) -> Expr:
    if v.dtype == "float32":
        return v["self"] - T.trunc(v["self"] / v["other"]) * v["other"]
    return T.truncmod(v["self"], v["other"])


@_rule("neg.default")
def _neg(v: Vectors) -> Expr:
    return v.number(0) - v["self"]


@_rule("abs.default")
def _abs(v: Vectors) -> Expr:
    return T.max(v["self"], v.number(0) - v["self"])


@_rule("sign.default")
def _sign(v: Vectors) -> Expr:
    x, zero = v["self"], v.number(0)
    return v.where(x > zero, v.number(1), v.where(x < zero, v.number(-1), zero))


@_rule("square.default")
def _square(v: Vectors) -> Expr:
    return v["self"] * v["self"]


@_rule("sqrt.default")
def _sqrt(v: Vectors) -> Expr:
    return T.sqrt(v["self"])


@_rule("rsqrt.default")
def _rsqrt(v: Vectors) -> Expr:
    return v.number(1) / T.sqrt(v["self"])


@_rule("reciprocal.default")
def _reciprocal(v: Vectors) -> Expr:
    return v.number(1) / v["self"]


@_rule("pow.Tensor_Scalar", costly=True)
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


@_rule("pow.Tensor_Tensor", costly=True)
def _pow_tensor(v: Vectors) -> Expr:
    return T.pow(v["self"], v["exponent"])


@_rule("pow.Scalar", costly=True)
def _pow_scalar(v: Vectors) -> Expr:
    return vector_math.exp(v["exponent"] * v.number(math.log(v.plain("self"))), v.lanes)


@_rule("maximum.default", "max.other", "clamp_min.default", "clamp_min.Tensor")
def _maximum(v: Vectors) -> Expr:
    return T.max(v["self"], v["other" if "other" in v.arguments else "min"])


@_rule("minimum.default", "min.other", "clamp_max.default", "clamp_max.Tensor")
def _minimum(v: Vectors) -> Expr:
    return T.min(v["self"], v["other" if "other" in v.arguments else "max"])


@_rule("exp.default", costly=True)
def _exp(v: Vectors) -> Expr:
    return vector_math.exp(v["self"], v.lanes)


@_rule("log.default", costly=True)
def _log(v: Vectors) -> Expr:
    return T.log(v["self"])


@_rule("log2.default", costly=True)
def _log2(v: Vectors) -> Expr:
    return T.log(v["self"]) * v.number(1 / math.log(2))


@_rule("log10.default", costly=True)
def _log10(v: Vectors) -> Expr:
    return T.log(v["self"]) * v.number(1 / math.log(10))


@_rule("exp2.default", costly=True)
def _exp2(v: Vectors) -> Expr:
    return vector_math.exp(v["self"] * v.number(math.log(2)), v.lanes)


@_rule("expm1.default", costly=True)
def _expm1(v: Vectors) -> Expr:
    return vector_math.exp(v["self"], v.lanes) - v.number(1)


@_rule("atan.default", costly=True)
def _atan(v: Vectors) -> Expr:
    return T.atan(v["self"])


@_rule("tan.default", costly=True)
def _tan(v: Vectors) -> Expr:
    return T.tan(v["self"])


@_rule("log1p.default", costly=True)
def _log1p(v: Vectors) -> Expr:
    return T.log(v["self"] + v.number(1))


@_rule("sin.default", costly=True)
def _sin(v: Vectors) -> Expr:
    return T.sin(v["self"])


@_rule("cos.default", costly=True)
def _cos(v: Vectors) -> Expr:
    return T.cos(v["self"])


@_rule("floor.default")
def _floor(v: Vectors) -> Expr:
    return T.floor(v["self"])


@_rule("ceil.default")
def _ceil(v: Vectors) -> Expr:
    return T.ceil(v["self"])


@_rule("trunc.default")
def _trunc(v: Vectors) -> Expr:
    return T.trunc(v["self"])


@_rule("round.default")
def _round(v: Vectors) -> Expr:
    return T.nearbyint(v["self"])


@_rule("erf.default", costly=True)
def _erf(v: Vectors) -> Expr:
    return vector_math.erf(v["self"], v.lanes)


# Activations.


@_rule("relu.default")
def _relu(v: Vectors) -> Expr:
    return T.max(v["self"], v.number(0))


@_rule("relu6.default")
def _relu6(v: Vectors) -> Expr:
    return T.max(T.min(v["self"], v.number(6)), v.number(0))


@_rule("hardtanh.default")
def _hardtanh(v: Vectors) -> Expr:
    return T.max(T.min(v["self"], v["max_val"]), v["min_val"])


@_rule("clamp.default", "clamp.Tensor")
def _clamp(v: Vectors) -> Expr:
    x = v["self"]
    x = x if v.plain("min") is None else T.max(x, v["min"])
    return x if v.plain("max") is None else T.min(x, v["max"])


@_rule("sigmoid.default", costly=True)
def _sigmoid(v: Vectors) -> Expr:
    return vector_math.sigmoid(v["self"], v.lanes)


@_rule("tanh.default", costly=True)
def _tanh(v: Vectors) -> Expr:
    return vector_math.tanh(v["self"], v.lanes)


@_rule("silu.default", costly=True)
def _silu(v: Vectors) -> Expr:
    return v["self"] * vector_math.sigmoid(v["self"], v.lanes)


@_rule("gelu.default", costly=True)
def _gelu(v: Vectors) -> Expr:
    x, half = v["self"], v.number(0.5)
    if v.plain("approximate") == "tanh":
        inner = v.number(math.sqrt(2 / math.pi)) * (x + v.number(0.044715) * x * x * x)
        return half * x * (v.number(1) + vector_math.tanh(inner, v.lanes))
    return half * x * (v.number(1) + vector_math.erf(x * v.number(math.sqrt(0.5)), v.lanes))


def _gate(v: Vectors, x: Expr) -> Expr:
    """min(max(x + 3, 0), 6) / 6."""
    return T.max(T.min(x + v.number(3), v.number(6)), v.number(0)) * v.number(1 / 6)


@_rule("hardswish.default", costly=True)
def _hardswish(v: Vectors) -> Expr:
    return v["self"] * _gate(v, v["self"])


@_rule("hardsigmoid.default", costly=True)
def _hardsigmoid(v: Vectors) -> Expr:
    return _gate(v, v["self"])


@_rule("leaky_relu.default")
def _leaky_relu(v: Vectors) -> Expr:
    x, zero = v["self"], v.number(0)
    return v.where(x > zero, x, x * v.number(v.plain("negative_slope")))


@_rule("elu.default", costly=True)
def _elu(v: Vectors) -> Expr:
    x, scale = v["self"] * v.number(v.plain("input_scale")), v.number(v.plain("scale"))
    negative = (vector_math.exp(T.min(x, v.number(0)), v.lanes) - v.number(1)) * v.number(v.plain("alpha"))
    return scale * v.where(v["self"] > v.number(0), v["self"], negative)


def _softplus_of(v: Vectors, x: Expr) -> Expr:
    """log(1 + e**x), without overflow."""
    size = T.max(x, v.number(0) - x)
    return T.max(x, v.number(0)) + T.log(v.number(1) + vector_math.exp(v.number(0) - size, v.lanes))


@_rule("softplus.default", costly=True)
def _softplus(v: Vectors) -> Expr:
    x, beta = v["self"], v.number(v.plain("beta"))
    soft = _softplus_of(v, x * beta) / beta
    return v.where(x * beta > v.number(v.plain("threshold")), x, soft)


@_rule("mish.default", costly=True)
def _mish(v: Vectors) -> Expr:
    return v["self"] * vector_math.tanh(_softplus_of(v, v["self"]), v.lanes)


@_rule("log_sigmoid.default", costly=True)
def _log_sigmoid(v: Vectors) -> Expr:
    return v.number(0) - _softplus_of(v, v.number(0) - v["self"])


# Comparisons and truth values.


def _comparison(name: str, compare: Callable[[Expr, Expr], Expr]) -> None:
    _rule(f"{name}.Tensor", f"{name}.Scalar", inputs=True)(lambda v: compare(v["self"], v["other"]))


_comparison("eq", lambda a, b: a == b)
_comparison("ne", lambda a, b: a != b)
_comparison("lt", lambda a, b: a < b)
_comparison("le", lambda a, b: a <= b)
_comparison("gt", lambda a, b: a > b)
_comparison("ge", lambda a, b: a >= b)


def _both(*names: str) -> list[str]:
    return [f"{name}.{form}" for name in names for form in ("Tensor", "Scalar")]


@_rule("logical_and.default", *_both("bitwise_and", "__and__"))
def _and(v: Vectors) -> Expr:
    return T.And(v["self"], v["other"]) if v.dtype == "bool" else T.bitwise_and(v["self"], v["other"])


@_rule("logical_or.default", *_both("bitwise_or", "__or__"))
def _or(v: Vectors) -> Expr:
    return T.Or(v["self"], v["other"]) if v.dtype == "bool" else T.bitwise_or(v["self"], v["other"])


@_rule("logical_xor.default", *_both("bitwise_xor", "__xor__"))
def _xor(v: Vectors) -> Expr:
    a, b = v["self"], v["other"]
    return T.And(T.Or(a, b), T.Not(T.And(a, b))) if v.dtype == "bool" else T.bitwise_xor(a, b)


@_rule("isnan.default", inputs=True)
def _isnan(v: Vectors) -> Expr:
    return v["self"] != v["self"]


@_rule("logical_not.default", "bitwise_not.default")
def _not(v: Vectors) -> Expr:
    return T.Not(v["self"]) if v.dtype == "bool" else T.bitwise_not(v["self"])


@_rule("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(v: Vectors) -> Expr:
    return v.where(v["condition"], v["self"], v["other"])


@_rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(v: Vectors) -> Expr:
    return v.where(v["mask"], v["value"], v["self"])


# Types.


@_rule("to.dtype", "_to_copy.default", "to.dtype_layout", "float.default")
def _to(v: Vectors) -> Expr:
    return v["self"]
