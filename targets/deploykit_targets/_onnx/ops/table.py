"""The table of translations, and `Call`: one captured node with its arguments bound to their schema names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.fx import Node

from deploykit.capture.calls import OperatorTable, attribute
from deploykit_targets._onnx.writer import GraphWriter, element_type

Value = str | tuple[str, ...]


class ValueSource(Protocol):
    """Gives the ONNX value of a captured node, writing constants when they are first asked for."""

    def value(self, node: Node) -> Value: ...

    def constant_of(self, node: Any) -> torch.Tensor | None: ...

    def transposed(self, node: Node) -> str: ...


@dataclass
class Call:
    """A captured operator call about to be written.

    Attributes:
        node: the captured node.
        arguments: every schema argument by name, defaults filled in; tensors are still captured nodes.
        writer: where the ONNX nodes go.
        source: gives the values of captured nodes.
    """

    node: Node
    arguments: dict[str, Any]
    writer: GraphWriter
    source: ValueSource

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that only some overloads have; None counts as not given."""
        found = self.arguments.get(name)
        return default if found is None else found

    @property
    def out(self) -> Any:
        """Shape and dtype of the result: a meta tensor, or a tuple of them."""
        return self.node.meta["val"]

    def read_parts(self) -> set[int]:
        """Which tensors of a group anything reads."""
        return {int(user.args[1]) for user in self.node.users if user.users}  # type: ignore[arg-type]

    def meta(self, name: str) -> torch.Tensor:
        """Shape and dtype of a tensor argument."""
        return tensor_meta(self.arguments[name])

    def value(self, name: str) -> str:
        """The ONNX name of a tensor argument; an argument that was not given is the empty name."""
        argument = self.arguments.get(name)
        return "" if argument is None else self.name_of(argument)

    def name_of(self, node: Any) -> str:
        """The ONNX name of one captured tensor."""
        found = self.source.value(node)
        if not isinstance(found, str):
            raise TypeError(f"{node} is a group of tensors where one tensor is needed")
        return found

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Write a node with one output."""
        return self.writer.op(op_type, *inputs, **attributes)

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """A constant of the given dtype, by default that of the result."""
        return self.writer.constant(value, self.out.dtype if dtype is None else dtype)

    def ints(self, values: Sequence[int]) -> str:
        """A 1-D int64 constant."""
        return self.writer.ints(values)

    def cast(self, value: str, have: torch.dtype, want: torch.dtype) -> str:
        """`value` as dtype `want`; nothing is written when it already is."""
        return value if have == want else self.op("Cast", value, to=element_type(want))

    def as_dtype(self, argument: Any, dtype: torch.dtype) -> str:
        """A tensor or Python number as an ONNX value of `dtype`."""
        if isinstance(argument, Node):
            return self.cast(self.name_of(argument), tensor_meta(argument).dtype, dtype)
        return self.writer.constant(argument, dtype)

    def axis(self, dim: int, rank: int) -> int:
        """A non-negative axis."""
        return dim + rank if dim < 0 else dim

    def shape(self, sizes: Sequence[Any]) -> str:
        """A 1-D int64 value of sizes that may be computed at run time (captured nodes)."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(sizes)
        parts = [
            self.ints([size]) if isinstance(size, int) else self.op("Unsqueeze", self.name_of(size), self.ints([0]))
            for size in sizes
        ]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)


def tensor_meta(argument: Any) -> torch.Tensor:
    """Shape and dtype of a captured tensor.

    Placement adds q/dq nodes, which may carry no `val`; theirs follows from what they quantise.
    """
    if not isinstance(argument, Node):
        return torch.as_tensor(argument, device="meta")
    if "val" in argument.meta:
        val = argument.meta["val"]
        if isinstance(val, torch.Tensor):
            return val
        dtype = torch.bool if isinstance(val, (bool, torch.SymBool)) else torch.int64
        return torch.empty((), dtype=torch.float64 if isinstance(val, float) else dtype, device="meta")
    if argument.op == "get_attr":
        found = attribute(argument)
        return torch.empty_like(found, device="meta")
    name = str(argument.target)
    if name.startswith("quantized_decomposed."):
        base = tensor_meta(argument.args[0])
        return base.to(torch.float32) if "dequantize" in name else base.to(_q_dtype(argument))
    raise KeyError(f"{argument.name} carries no shape and dtype (meta['val'])")


def _q_dtype(node: Node) -> torch.dtype:
    dtype = node.args[-1] if node.args else node.kwargs["dtype"]
    assert isinstance(dtype, torch.dtype)
    return dtype


Translation = Callable[[Call], Value]
TABLE: OperatorTable[Translation] = OperatorTable()
translates = TABLE.register


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of a NumPy dtype name."""
    found = getattr(torch, {"bool_": "bool"}.get(name, name))
    assert isinstance(found, torch.dtype)
    return found


# Arithmetic on sizes, which the capture writes with Python's own operators.
_SIZE_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "floordiv": "Div", "mod": "Mod", "neg": "Neg"}


def scalar_operator(node: Node, writer: GraphWriter, source: ValueSource) -> str | None:
    """Write size arithmetic (int64 scalars); None when the node is something else. Sizes are never negative."""
    op_type = _SIZE_ARITHMETIC.get(getattr(node.target, "__name__", ""))
    if op_type is None or getattr(node.target, "__module__", "") not in ("_operator", "operator"):
        return None
    call = Call(node, {}, writer, source)
    return call.op(op_type, *(call.as_dtype(argument, torch.int64) for argument in node.args))
