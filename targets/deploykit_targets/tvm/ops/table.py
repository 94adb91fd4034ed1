"""The table of translations, and `Call`: one captured node with its arguments bound to their schema names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from deploykit.capture.calls import OperatorTable, bind
from deploykit_targets.tvm.bfloat16 import is_narrowing, is_widening
from deploykit_targets.tvm.kernels.bfloat16 import AS_FLOAT, BFLOAT16
from deploykit_targets.tvm.kernels.expressions import Affine
from deploykit_targets.tvm.values import Constant, Lazy, Tensor, Value, View

if TYPE_CHECKING:
    from deploykit_targets.tvm.emit import Emitter
    from deploykit_targets.tvm.lower import Lowering


class NotCoveredError(Exception):
    """A form of an operator that no kernel computes; becomes a `ConversionError` that names the user's line."""


@dataclass(frozen=True, eq=False)
class Call:
    """A captured operator call about to be lowered.

    Attributes:
        node: the captured node.
        arguments: every schema argument by name, defaults filled in; tensors are still captured nodes.
        lowering: gives the values of captured nodes.
    """

    node: Node
    arguments: dict[str, Any]
    lowering: Lowering

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def emit(self) -> Emitter:
        """Where steps go."""
        return self.lowering.emitter

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(self.node.meta["val"].shape)

    @property
    def dtype(self) -> str:
        """Type of the result, by NumPy's name."""
        return dtype_name(self.node.meta["val"].dtype)

    def tensor(self, name: str) -> Tensor:
        """The value of a tensor argument; a Python number becomes a constant."""
        return self.lowering.tensor(self.arguments[name])

    def constant(self, name: str) -> Constant | None:
        """The value of an argument that is known now, or None where it was not given.

        Raises:
            NotCoveredError: it is computed at run time.
        """
        if self.arguments.get(name) is None:
            return None
        value = self.tensor(name)
        if not isinstance(value, Constant):
            raise NotCoveredError(f"{name} is computed at run time")
        return value


@dataclass(frozen=True)
class Tail:
    """What follows a layer and is computed with it.

    Attributes:
        nodes: the layer and what it swallows; each has the value of the last.
        limits: clip to these real numbers; None where nothing clips.
        affine: the result is quantized so; None where it stays float.
        dtype: the dtype of the quantized result.
        codes: smallest and largest integer of the quantized result.
    """

    nodes: tuple[Node, ...]
    limits: tuple[float, float] | None = None
    affine: Affine | None = None
    dtype: str = "float32"
    codes: tuple[int, int] = (0, 0)

    @property
    def last(self) -> Node:
        """The node whose value the layer gives."""
        return self.nodes[-1]

    @property
    def clip(self) -> tuple[float, float] | None:
        """Limits in units of the result."""
        if self.affine is None or self.dtype == BFLOAT16:
            return self.limits
        low, high = self.codes
        if self.limits is not None:
            low, high = (min(max(self._code(limit), low), high) for limit in self.limits)
        return low, high

    def _code(self, real: float) -> int:
        assert self.affine is not None
        low, high = self.codes
        scaled = real / self.affine.scale
        return low if scaled < -1e6 else high if scaled > 1e6 else round(scaled) + self.affine.zero_point


INFINITY = float("inf")
_LARGEST = 3.4028234663852886e38


def clip_limits(node: Node) -> tuple[float, float] | None:
    """The real limits of an activation that only clips, None for any other node."""
    name = str(node.target)
    if name == "aten.relu.default":
        return 0.0, _LARGEST
    if name == "aten.relu6.default":
        return 0.0, 6.0
    if name in ("aten.hardtanh.default", "aten.clamp.default"):
        bound = bind(node)
        low, high = (bound["min_val"], bound["max_val"]) if "hardtanh" in name else (bound["min"], bound["max"])
        return (-_LARGEST if low is None else float(low)), (_LARGEST if high is None else float(high))
    return None


def tail_of(node: Node, *, of_integers: bool = True) -> Tail:
    """What clips a layer's result, and its quantization, as far as nothing else reads what is between.

    Args:
        node: the layer.
        of_integers: whether it sums integers. One that sums real numbers has no scale that would bring them to eight
            bits: rounding them is a step of its own, and only a cast to bfloat16 belongs to the layer.
    """
    tail = Tail((node,))
    while len(tail.last.users) == 1:
        (user,) = tail.last.users
        limits = clip_limits(user) if user.op == "call_function" else None
        if limits is not None and user.args[0] is tail.last:
            low, high = tail.limits or (-_LARGEST, _LARGEST)
            clipped = (min(max(low, limits[0]), limits[1]), max(min(high, limits[1]), limits[0]))
            tail = Tail((*tail.nodes, user), clipped)
        elif is_quantize(user) and (of_integers or is_narrowing(user)):
            affine, dtype, codes = quantization_of(user)
            return Tail((*tail.nodes, user), tail.limits, affine, dtype, codes)
        else:
            break
    return tail


def is_quantize(node: Node) -> bool:
    """Whether a node rounds a tensor, to integers or to bfloat16."""
    return str(node.target) == "quantized_decomposed.quantize_per_tensor.default" or is_narrowing(node)


def is_dequantize(node: Node) -> bool:
    """Whether a node turns a rounded tensor back to real numbers."""
    return str(node.target) == "quantized_decomposed.dequantize_per_tensor.default" or is_widening(node)


def quantization_of(node: Node) -> tuple[Affine, str, tuple[int, int]]:
    """Parameters, dtype and integers of a node that rounds, or turns back; bfloat16 has no integers."""
    if is_narrowing(node):
        return AS_FLOAT, BFLOAT16, (0, 0)
    bound = bind(node)
    affine = Affine(float(bound["scale"]), int(bound["zero_point"]))
    return affine, dtype_name(bound["dtype"]), (int(bound["quant_min"]), int(bound["quant_max"]))


def consumers(node: Node) -> int:
    """How many nodes read a value, seen through what only turns it back to real numbers."""
    return sum(consumers(user) if is_dequantize(user) else 1 for user in node.users)


Translation = Callable[[Call], Value]
_TABLE = OperatorTable[Translation]()
lowers, lookup, known_operators = _TABLE.register, _TABLE.lookup, _TABLE.known


def dtype_name(dtype: torch.dtype) -> str:
    """NumPy's name of a torch dtype."""
    return str(dtype).removeprefix("torch.")


def affine_of(value: Tensor) -> Affine | None:
    """The quantization of an activation."""
    return value.affine if isinstance(value, (View, Lazy)) else None


def is_bfloat16(value: Tensor) -> bool:
    """Whether a value is held, or will be, in bfloat16."""
    return isinstance(value, (View, Lazy)) and value.dtype == BFLOAT16


def codes_of(value: Tensor) -> Affine | None:
    """The quantization of an activation that is held in eight bits."""
    return None if is_bfloat16(value) else affine_of(value)
