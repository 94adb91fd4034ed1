"""Element-wise arithmetic, comparison, logic and mathematics, with PyTorch's type promotion written out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from deploykit_targets._onnx.ops.table import Call, Translation, tensor_meta, translates

# PyTorch overload stem -> ONNX operator; both operands are first cast to the result's dtype.
_BINARY = {"mul": "Mul", "pow": "Pow", "maximum": "Max", "minimum": "Min"}
_COMPARE = {"eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"}
_LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
_BITWISE = {
    "bitwise_and": ("And", "BitwiseAnd"),
    "bitwise_or": ("Or", "BitwiseOr"),
    "bitwise_xor": ("Xor", "BitwiseXor"),
}
_UNARY = {
    "abs": "Abs", "ceil": "Ceil", "floor": "Floor", "neg": "Neg", "sign": "Sign",
    "cos": "Cos", "sin": "Sin", "tan": "Tan", "acos": "Acos", "asin": "Asin", "atan": "Atan",
    "cosh": "Cosh", "sinh": "Sinh", "tanh": "Tanh", "acosh": "Acosh", "asinh": "Asinh", "atanh": "Atanh",
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "erf": "Erf", "sigmoid": "Sigmoid",
    "logical_not": "Not", "isnan": "IsNaN", "isinf": "IsInf", "round": "Round",
}  # fmt: skip


def _operands(c: Call, dtype: torch.dtype) -> tuple[str, str]:
    left, right = list(c.arguments.values())[:2]
    return c.as_dtype(left, dtype), c.as_dtype(right, dtype)


def common_dtype(left: Any, right: Any) -> torch.dtype:
    """The dtype PyTorch computes in for two operands, tensors (captured nodes) or Python numbers."""
    values = [tensor_meta(x) if isinstance(x, Node) else x for x in (left, right)]
    return torch.result_type(values[0], values[1])


def _binary(op_type: str) -> Translation:
    def write(c: Call) -> str:
        left, right = _operands(c, c.out.dtype)
        return c.op(op_type, left, right)

    return write


def _compare(op_type: str) -> Translation:
    def write(c: Call) -> str:
        left, right = list(c.arguments.values())[:2]
        dtype = common_dtype(left, right)
        if dtype == torch.bool and op_type != "Equal":  # ONNX orders numbers only
            dtype = torch.int32
        return c.op(op_type, *_operands(c, dtype))

    return write


def _logical(op_type: str) -> Translation:
    return lambda c: c.op(op_type, *_operands(c, torch.bool))


def _bitwise(on_bool: str, on_ints: str) -> Translation:
    def write(c: Call) -> str:
        left, right = _operands(c, c.out.dtype)
        return c.op(on_bool if c.out.dtype == torch.bool else on_ints, left, right)

    return write


def _unary(op_type: str) -> Translation:
    def write(c: Call) -> str:
        have = c.meta("self").dtype
        want = torch.bool if op_type == "Not" else have if c.out.dtype == torch.bool else c.out.dtype
        return c.op(op_type, c.cast(c.value("self"), have, want))

    return write


for _stem, _op in _BINARY.items():
    _named = {"pow": (".Tensor_Tensor", ".Tensor_Scalar", ".Scalar"), "mul": (".Tensor", ".Scalar")}
    translates(*(f"aten.{_stem}{suffix}" for suffix in _named.get(_stem, (".default",))))(_binary(_op))
for _stem, _op in _COMPARE.items():
    translates(f"aten.{_stem}.Tensor", f"aten.{_stem}.Scalar")(_compare(_op))
for _stem, _op in _LOGICAL.items():
    translates(f"aten.{_stem}.default")(_logical(_op))
for _stem, (_on_bool, _on_ints) in _BITWISE.items():
    _dunder = f"aten.__{_stem.removeprefix('bitwise_')}__"
    _overloads = [f"{name}.{kind}" for name in (f"aten.{_stem}", _dunder) for kind in ("Tensor", "Scalar")]
    translates(*_overloads)(_bitwise(_on_bool, _on_ints))
for _stem, _op in _UNARY.items():
    translates(f"aten.{_stem}.default")(_unary(_op))


@translates("aten.ne.Tensor", "aten.ne.Scalar")
def not_equal(c: Call) -> str:
    """Equal, then Not: ONNX has no NotEqual."""
    left, right = list(c.arguments.values())[:2]
    return c.op("Not", c.op("Equal", *_operands(c, common_dtype(left, right))))


def _scaled(c: Call, value: str, alpha: Any) -> str:
    return value if alpha == 1 else c.op("Mul", value, c.constant(alpha))


@translates("aten.add.Tensor", "aten.add.Scalar")
def add(c: Call) -> str:
    """`left + alpha * right`; booleans add as logical or, as in PyTorch."""
    left, right = _operands(c, c.out.dtype)
    return c.op("Or" if c.out.dtype == torch.bool else "Add", left, _scaled(c, right, c["alpha"]))


@translates("aten.sub.Tensor", "aten.sub.Scalar")
def sub(c: Call) -> str:
    """`left - alpha * right`."""
    left, right = _operands(c, c.out.dtype)
    return c.op("Sub", left, _scaled(c, right, c["alpha"]))


@translates("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(c: Call) -> str:
    """`right - alpha * left`."""
    left, right = _operands(c, c.out.dtype)
    return c.op("Sub", right, _scaled(c, left, c["alpha"]))


@translates("aten.div.Tensor", "aten.div.Scalar", "aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div(c: Call) -> str:
    """True division, or rounded towards zero (`trunc`) or minus infinity (`floor`)."""
    mode = c.get("rounding_mode")
    if mode is not None and not c.out.dtype.is_floating_point:
        return _integer_division(c, mode)
    quotient = c.op("Div", *_operands(c, c.out.dtype))
    if mode is None:
        return quotient
    return c.op("Floor", quotient) if mode == "floor" else _truncate(c, quotient, c.out.dtype)


def _integer_division(c: Call, mode: str) -> str:
    left, right = _operands(c, c.out.dtype)
    if mode == "trunc":
        return c.op("Div", left, right)  # ONNX integer division truncates
    remainder = c.op("Mod", left, right)  # has the divisor's sign: what is left divides exactly
    return c.op("Div", c.op("Sub", left, remainder), right)


def _truncate(c: Call, value: str, dtype: torch.dtype) -> str:
    return c.op("Mul", c.op("Sign", value), c.op("Floor", c.op("Abs", value)))


@translates("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(c: Call) -> str:
    """Division rounded towards minus infinity."""
    if not c.out.dtype.is_floating_point:
        return _integer_division(c, "floor")
    return c.op("Floor", c.op("Div", *_operands(c, c.out.dtype)))


@translates("aten.trunc.default")
def trunc(c: Call) -> str:
    """Rounding towards zero."""
    return _truncate(c, c.value("self"), c.out.dtype)


@translates("aten.remainder.Tensor", "aten.remainder.Scalar")
def remainder(c: Call) -> str:
    """Python's modulo; ONNX Mod has it for integers only, floats are written out."""
    left, right = _operands(c, c.out.dtype)
    if not c.out.dtype.is_floating_point:
        return c.op("Mod", left, right)
    return c.op("Sub", left, c.op("Mul", c.op("Floor", c.op("Div", left, right)), right))


@translates("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(c: Call) -> str:
    """C's modulo: the sign of the dividend."""
    left, right = _operands(c, c.out.dtype)
    return c.op("Mod", left, right, fmod=1)


@translates("aten.clamp.default", "aten.clamp_min.default", "aten.clamp_max.default", "aten.hardtanh.default")
def clamp(c: Call) -> str:
    """Limits given as numbers; a missing one is left open."""
    low, high = c.get("min", c.get("min_val")), c.get("max", c.get("max_val"))
    bounds = [c.constant(bound) if bound is not None else "" for bound in (low, high)]
    return c.op("Clip", c.cast(c.value("self"), c.meta("self").dtype, c.out.dtype), *bounds)


@translates("aten.clamp.Tensor", "aten.clamp_min.Tensor", "aten.clamp_max.Tensor")
def clamp_tensor(c: Call) -> str:
    """Limits given as tensors, broadcast."""
    value = c.as_dtype(c["self"], c.out.dtype)
    for name, op_type in (("min", "Max"), ("max", "Min")):
        if c.get(name) is not None:
            value = c.op(op_type, value, c.as_dtype(c[name], c.out.dtype))
    return value


@translates("aten.rsqrt.default")
def rsqrt(c: Call) -> str:
    """1 / sqrt(x)."""
    return c.op("Reciprocal", c.op("Sqrt", c.as_dtype(c["self"], c.out.dtype)))


@translates("aten.square.default")
def square(c: Call) -> str:
    """`x * x`."""
    return c.op("Mul", c.value("self"), c.value("self"))


@translates("aten.log2.default", "aten.log10.default", "aten.log1p.default", "aten.expm1.default", "aten.exp2.default")
def logarithms(c: Call) -> str:
    """Logarithms and exponentials to another base or shifted by one, from Exp and Log."""
    value, stem = c.as_dtype(c["self"], c.out.dtype), str(c.node.target).split(".")[1]
    if stem == "log1p":
        return c.op("Log", c.op("Add", value, c.constant(1.0)))
    if stem == "expm1":
        return c.op("Sub", c.op("Exp", value), c.constant(1.0))
    if stem == "exp2":
        return c.op("Exp", c.op("Mul", value, c.constant(math.log(2))))
    return c.op("Div", c.op("Log", value), c.constant(math.log(2 if stem == "log2" else 10)))


@translates("aten.bitwise_not.default")
def bitwise_not(c: Call) -> str:
    """Not on booleans, BitwiseNot on integers."""
    return c.op("Not" if c.out.dtype == torch.bool else "BitwiseNot", c.value("self"))


@translates("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(c: Call) -> str:
    """Choice by a boolean mask; either side may be a number."""
    return c.op("Where", c.value("condition"), c.as_dtype(c["self"], c.out.dtype), c.as_dtype(c["other"], c.out.dtype))


@translates("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(c: Call) -> str:
    """`value` where the mask is set."""
    return c.op("Where", c.value("mask"), c.as_dtype(c["value"], c.out.dtype), c.value("self"))


@translates("aten.addcmul.default", "aten.addcdiv.default")
def add_product(c: Call) -> str:
    """`self + value * a * b`, or a / b."""
    op_type = "Mul" if "mul" in str(c.node.target) else "Div"
    first, second = (c.as_dtype(c[name], c.out.dtype) for name in ("tensor1", "tensor2"))
    return c.op("Add", c.as_dtype(c["self"], c.out.dtype), _scaled(c, c.op(op_type, first, second), c["value"]))


@translates("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(c: Call) -> str:
    """`self + weight * (end - self)`."""
    start, end = c.value("self"), c.value("end")
    return c.op("Add", start, c.op("Mul", c.as_dtype(c["weight"], c.out.dtype), c.op("Sub", end, start)))
