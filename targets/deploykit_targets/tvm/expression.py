"""Lazy values as one function of vectors: what `kernels.mapped` computes, and as a table of 256 entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16, widened
from deploykit_targets.tvm.kernels.expressions import Affine, Expr, cast, fill, limits_of
from deploykit_targets.tvm.kernels.script import T
from deploykit_targets.tvm.values import Array, Constant, Lazy, Shape, Tensor, View, elements

if TYPE_CHECKING:
    import torch

    from deploykit_targets.tvm.emit import Emitter

_MOST_LEAVES = 8
_ROUND = 1.5 * 2**23  # a sum with it has the rounded value in its lowest bits
COSTLY = "$"
"""Marks arithmetic in keys that a table is quicker for."""


@dataclass(frozen=True, eq=False)
class Expression:
    """One function of several tensors, element by element.

    Attributes:
        leaves: what is read, broadcast to the shape of the result.
        compute: (one vector of each leaf, as it lies in memory, lanes) -> vector as it shall lie in memory.
        key: equal for equal functions.
        dtype: the dtype of the result; `bool` is a vector of truth values.
    """

    leaves: tuple[View, ...]
    compute: Callable[[list[Expr], int], Expr]
    key: str
    dtype: str

    @property
    def costly(self) -> bool:
        """Whether a table is quicker, where one can do it."""
        return COSTLY in self.key


def expression_of(emitter: Emitter, value: Tensor, shape: Shape, *, real: bool) -> Expression:
    """A value as a function of what is in memory.

    Args:
        emitter: computes what several read, or what is smaller than the result.
        shape: the shape of the result; the value broadcasts to it.
        real: quantized values become float32; else they stay as they are.
    """
    unmade = isinstance(value, Lazy) and value.view is None
    found = _composed(emitter, value, shape) if unmade else _raw(emitter, value, shape)  # type: ignore[arg-type]
    affine = None if isinstance(value, Constant) else value.affine
    if affine is not None and real:
        return _real(found, affine)
    return _stored(found)


def _stored(found: Expression) -> Expression:
    """Truth values as bytes."""
    if found.dtype != "bool":
        return found
    return replace(found, compute=lambda v, n: converted(found.compute(v, n), "bool", "uint8", n), dtype="uint8")


def _real(found: Expression, affine: Affine) -> Expression:
    if found.dtype == BFLOAT16:
        return Expression(found.leaves, lambda v, n: widened(found.compute(v, n), n), f"real({found.key})", "float32")

    def compute(vectors: list[Expr], lanes: int) -> Expr:
        centred = cast(found.compute(vectors, lanes), "int32", lanes) - fill(affine.zero_point, "int32", lanes)
        return cast(centred, "float32", lanes) * fill(affine.scale, "float32", lanes)

    key = f"real({found.key},{affine.scale!r},{affine.zero_point})"
    return Expression(found.leaves, compute, key, "float32")


def _raw(emitter: Emitter, value: Tensor, shape: Shape) -> Expression:
    if isinstance(value, Constant):
        if elements(value.shape) == 1:
            return _number(value.real.ravel()[0])
        value = emitter.view(value)
    if isinstance(value, Lazy) and value.view is None and (value.shared or elements(value.shape) < elements(shape)):
        emitter.view(value)
    if isinstance(value, Lazy) and value.view is not None:
        value = value.view
    return _leaf(value, shape) if isinstance(value, View) else _composed(emitter, value, shape)


def _number(number: Any) -> Expression:
    dtype, plain = str(number.dtype), number.item()
    if dtype == "bool":
        return Expression((), lambda _, n: truth(plain, n), repr(plain), dtype)
    return Expression((), lambda _, n: fill(plain, dtype, n), f"{dtype}:{plain!r}", dtype)


def truth(value: bool, lanes: int) -> Expr:
    """A truth value in each lane."""
    return fill(int(value), "int32", lanes) != fill(0, "int32", lanes)


def _leaf(view: View, shape: Shape) -> Expression:
    missing = len(shape) - len(view.shape)
    strides = [0] * missing
    for size, stride in zip(view.shape, view.strides, strict=True):
        strides.append(0 if size == 1 else stride)
    wide = replace(view, shape=shape, strides=tuple(strides))
    if view.boolean:
        return Expression((wide,), lambda v, n: v[0] != fill(0, "uint8", n), "truth", "bool")
    return Expression((wide,), lambda v, _: v[0], f"@{view.dtype}", view.dtype)


def _composed(emitter: Emitter, lazy: Lazy, shape: Shape) -> Expression:
    children = [expression_of_argument(emitter, argument, shape) for argument in lazy.arguments]
    if sum(len(child.leaves) for child in children) > _MOST_LEAVES:
        for argument in lazy.arguments:
            if isinstance(argument, Lazy):
                emitter.view(argument)
        children = [expression_of_argument(emitter, argument, shape) for argument in lazy.arguments]
    leaves, places = _merged([child.leaves for child in children])

    def compute(vectors: list[Expr], lanes: int) -> Expr:
        arguments = []
        for child, place, dtype in zip(children, places, lazy.dtypes, strict=True):
            own = child.compute([vectors[index] for index in place], lanes)
            arguments.append(converted(own, child.dtype, dtype, lanes))
        return lazy.compute(arguments, lanes)

    inside = ",".join(f"{child.key}{place}" for child, place in zip(children, places, strict=True))
    return Expression(leaves, compute, f"{lazy.key}({inside})", lazy.dtype)


def expression_of_argument(emitter: Emitter, value: Tensor, shape: Shape) -> Expression:
    """An argument as arithmetic reads it: real numbers, truth values as such."""
    found = _raw(emitter, value, shape)
    affine = None if isinstance(value, Constant) else value.affine
    return found if affine is None else _real(found, affine)


def _merged(groups: list[tuple[View, ...]]) -> tuple[tuple[View, ...], list[list[int]]]:
    """All leaves, each once, and for each group which they are."""
    leaves: list[View] = []
    seen: dict[object, int] = {}
    places = []
    for group in groups:
        place = []
        for leaf in group:
            key = (id(leaf.buffer), leaf.strides, leaf.offset, leaf.affine)
            if key not in seen:
                seen[key] = len(leaves)
                leaves.append(leaf)
            place.append(seen[key])
        places.append(place)
    return tuple(leaves), places


def converted(value: Expr, have: str, want: str, lanes: int) -> Expr:
    """A vector as another dtype; `bool` is a vector of truth values."""
    if have == want:
        return value
    if have == "bool":
        return T.Select(value, fill(1, want, lanes), fill(0, want, lanes))
    if want == "bool":
        return value != fill(0, have, lanes)
    return cast(value, want, lanes)


def rounded(value: Expr, to: Affine, dtype: str, limits: tuple[int, int], lanes: int) -> Expr:
    """float32 -> eight bits as PyTorch does it: times 1 / scale, rounded half to even, then the zero point."""
    inverse = float(np.float32(1) / np.float32(to.scale))
    low, high = (float(limit - to.zero_point) for limit in limits)
    scaled = value * fill(inverse, "float32", lanes)
    clipped = T.max(T.min(scaled, fill(high, "float32", lanes)), fill(low, "float32", lanes))
    bits = T.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", clipped + fill(_ROUND, "float32", lanes))
    return cast(bits + fill(to.zero_point, "int32", lanes), dtype, lanes)


def table_of(lazy: Lazy, source: View) -> Array:
    """What a function of one quantized tensor gives for each of the 256 bytes, in the order of their unsigned values.

    Args:
        lazy: an expression whose only leaf is `source`.
    """
    import torch

    assert source.affine is not None
    low, high = limits_of(source.dtype)
    codes = torch.arange(low, high + 1)
    real = (codes - source.affine.zero_point).to(torch.float32) * source.affine.scale

    def run(value: Tensor) -> torch.Tensor:
        if isinstance(value, Constant):
            return torch.from_numpy(value.real)
        if isinstance(value, View) or value.view is not None:
            return real
        result = value.torch(*map(run, value.arguments))
        if value is not lazy and value.affine is not None:
            return (result.to(torch.float32) - value.affine.zero_point) * value.affine.scale
        return result

    result: Array = run(lazy).numpy()
    return result
