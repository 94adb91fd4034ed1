"""Complex numbers as pairs of real tensors, and the calls that rules for them write.

A part that is None is zero everywhere: a real tensor that became complex costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deploykit.capture.editor import Call, Editor, shape_of
from deploykit.capture.origins import origin_of
from deploykit.contract.errors import CaptureError

aten = torch.ops.aten

UNKNOWN = "write that part with real tensors (torch.view_as_real), or keep it out of the exported model"
"""What to do about an operator that has no rule."""

REAL_OF = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}


@dataclass(frozen=True)
class Pair:
    """A complex value: nodes of one shape (or lists of them), or numbers."""

    re: Any
    im: Any


class Writer:
    """Writes calls in place of one node.

    Attributes:
        node: what is replaced.
        val: its value: shape and dtype of the result.
    """

    def __init__(self, editor: Editor, node: Call, stored: dict[bytes, Call]) -> None:
        """Args: stored: the constants of one graph that were stored so far, by content; equal ones are one."""
        self.editor, self.node, self.val, self._stored = editor, node, node.meta["val"], stored

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Call:
        """Insert a call in front of the node."""
        return self.editor.call(target, *args, before=self.node, **kwargs)

    def constant(self, tensor: Tensor) -> Call:
        """Store a tensor with the graph, once."""
        plain = tensor.contiguous()
        key = f"{plain.dtype} {tuple(plain.shape)} ".encode() + plain.numpy().tobytes()
        if key not in self._stored:
            self._stored[key] = self.editor.constant(f"constant_{self.node.name}", plain)
        return self._stored[key]

    def refuse(self, why: str, hint: str) -> CaptureError:
        """The error that names the operator and its place."""
        return CaptureError(f"{why}: {origin_of(self.node)}", hint=hint)

    def pair(self, value: Any) -> Pair:
        """A pair of whatever stands for a complex or a real value."""
        if isinstance(value, complex):
            return Pair(value.real, value.imag or None)
        return value if isinstance(value, Pair) else Pair(value, None)

    def tensors(self, value: Pair) -> tuple[Call, Call]:
        """Both parts as tensors."""
        return value.re, self.zeros(value.re) if value.im is None else value.im

    def zeros(self, like: Call) -> Call:
        """Zeros of the shape of a tensor."""
        return self(aten.zeros_like.default, like)

    # Arithmetic of parts: nodes, numbers, or None for zero.

    def add(self, a: Any, b: Any) -> Any:
        """The sum."""
        if a is None or b is None:
            return b if a is None else a
        if _are_numbers(a, b):
            return a + b
        return self(aten.add.Tensor, a, b) if not _is_number(a) else self(aten.add.Tensor, b, a)

    def sub(self, a: Any, b: Any) -> Any:
        """The difference."""
        if b is None:
            return a
        if a is None or _is_number(a):
            return self.add(self.neg(b), a)
        return self(aten.sub.Tensor, a, b)

    def neg(self, a: Any) -> Any:
        """The negative."""
        if a is None or _is_number(a):
            return None if a is None else -a
        return self(aten.neg.default, a)

    def mul(self, a: Any, b: Any) -> Any:
        """The product, of a pair of parts."""
        if a is None or b is None:
            return None
        if _are_numbers(a, b):
            return a * b
        a, b = (b, a) if _is_number(a) else (a, b)
        return a if _is_number(b) and b == 1 else self(aten.mul.Tensor, a, b)

    def times(self, a: Pair, b: Pair) -> Pair:
        """The complex product."""
        return self.bilinear(self.mul, a, b)

    def bilinear(self, product: Any, a: Pair, b: Pair) -> Pair:
        """What a product of real tensors makes of complex ones: four of it, or two where one side is real."""

        def of(x: Any, y: Any) -> Any:
            return None if x is None or y is None else product(x, y)

        return Pair(self.sub(of(a.re, b.re), of(a.im, b.im)), self.add(of(a.re, b.im), of(a.im, b.re)))

    def conj(self, a: Pair) -> Pair:
        """The conjugate."""
        return Pair(a.re, self.neg(a.im))

    def squared(self, a: Pair) -> Any:
        """The squared magnitude."""
        return self.add(self.mul(a.re, a.re), self.mul(a.im, a.im))

    def slice(self, x: Any, axis: int, start: int, end: int, step: int = 1) -> Any:
        """A part of one axis; None stays zero."""
        if x is None or (start == 0 and step == 1 and shape_of(x)[axis] == end):
            return x
        return self(aten.slice.Tensor, x, axis, start, end, *((step,) if step != 1 else ()))

    def pad(self, x: Any, axis: int, before: int, after: int) -> Any:
        """Zeros around one axis; None stays zero."""
        if x is None or before == after == 0:
            return x
        trailing = len(shape_of(x)) - 1 - axis
        sizes = list(shape_of(x))
        sizes[axis] += before + after
        with self.editor.fakes():  # to infer it, PyTorch would fix a dynamic batch
            val = x.meta["val"].new_empty(sizes)
        return self(aten.constant_pad_nd.default, x, [0, 0] * trailing + [before, after], 0.0, val=val)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _are_numbers(a: Any, b: Any) -> bool:
    return _is_number(a) and _is_number(b)


def real_part(leaf: Any) -> Any:
    """The real part of a pair or a number; anything else as it is."""
    return leaf.re if isinstance(leaf, Pair) else leaf.real if isinstance(leaf, complex) else leaf


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change every leaf of nested arguments."""
    if isinstance(value, list | tuple):
        return [each(item, change) for item in value]
    if isinstance(value, dict):
        return {key: each(item, change) for key, item in value.items()}
    return change(value)


def leaves(value: Any) -> list[Any]:
    """Every leaf of nested arguments."""
    found: list[Any] = []
    each(value, found.append)
    return found
