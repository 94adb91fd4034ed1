"""Operators element by element: each is a function of vectors, computed when a kernel needs the result.

What each computes is a rule, in `arithmetic`, `activations` and `logic`; changes of type are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from deploykit.capture.calls import bind
from deploykit_targets.tvm.bfloat16 import is_narrowing, is_widening
from deploykit_targets.tvm.expression import COSTLY, truth
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
"""From the operator's arguments by name: tensors as vectors of the dtype that it computes in, numbers as numbers."""


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


def rule(*targets: str, inputs: bool = False, costly: bool = False) -> Callable[[Rule], Rule]:
    """Register how operators of these names are computed.

    Args:
        targets: overloads, without `aten.`.
        inputs, costly: as `Operator` has them.
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            _OPERATORS[f"aten.{target}"] = Operator(function, inputs, costly)
            lowers(f"aten.{target}")(elementwise)
        return function

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


@rule("to.dtype", "_to_copy.default", "to.dtype_layout", "float.default")
def _to(v: Vectors) -> Expr:
    return v["self"]
