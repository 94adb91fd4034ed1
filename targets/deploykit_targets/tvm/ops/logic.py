"""Comparisons, truth values and bits, and choices by them, element by element."""

from __future__ import annotations

from collections.abc import Callable

from deploykit_targets.tvm.kernels.expressions import Expr
from deploykit_targets.tvm.kernels.script import T
from deploykit_targets.tvm.ops.elementwise import Vectors, rule


def _comparison(name: str, compare: Callable[[Expr, Expr], Expr]) -> None:
    rule(f"{name}.Tensor", f"{name}.Scalar", inputs=True)(lambda v: compare(v["self"], v["other"]))


_comparison("eq", lambda a, b: a == b)
_comparison("ne", lambda a, b: a != b)
_comparison("lt", lambda a, b: a < b)
_comparison("le", lambda a, b: a <= b)
_comparison("gt", lambda a, b: a > b)
_comparison("ge", lambda a, b: a >= b)


def _both(*names: str) -> list[str]:
    return [f"{name}.{form}" for name in names for form in ("Tensor", "Scalar")]


@rule("logical_and.default", *_both("bitwise_and", "__and__"))
def _and(v: Vectors) -> Expr:
    return T.And(v["self"], v["other"]) if v.dtype == "bool" else T.bitwise_and(v["self"], v["other"])


@rule("logical_or.default", *_both("bitwise_or", "__or__"))
def _or(v: Vectors) -> Expr:
    return T.Or(v["self"], v["other"]) if v.dtype == "bool" else T.bitwise_or(v["self"], v["other"])


@rule("logical_xor.default", *_both("bitwise_xor", "__xor__"))
def _xor(v: Vectors) -> Expr:
    a, b = v["self"], v["other"]
    return T.And(T.Or(a, b), T.Not(T.And(a, b))) if v.dtype == "bool" else T.bitwise_xor(a, b)


@rule("isnan.default", inputs=True)
def _isnan(v: Vectors) -> Expr:
    return v["self"] != v["self"]


@rule("logical_not.default", "bitwise_not.default")
def _not(v: Vectors) -> Expr:
    return T.Not(v["self"]) if v.dtype == "bool" else T.bitwise_not(v["self"])


@rule("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(v: Vectors) -> Expr:
    return v.where(v["condition"], v["self"], v["other"])


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(v: Vectors) -> Expr:
    return v.where(v["mask"], v["value"], v["self"])
