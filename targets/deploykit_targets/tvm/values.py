"""Where a value of the captured graph is: bytes with strides, arithmetic that is still to be done, or a constant.

Strides are PyTorch's: a permutation or slice is the same bytes seen otherwise, and the layout of an image (NHWC) is no
more than the order of its strides. A value with an `affine` is held in eight bits and *means* the real numbers that
these stand for; quantizing it with the same parameters is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from deploykit_targets.tvm.kernels.expressions import Affine

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]


@dataclass(eq=False)
class Buffer:
    """Bytes that the memory plan places.

    Attributes:
        dtype: NumPy's name, as kernels see it; booleans are uint8.
        elements: the most that any kernel touches.
        data: the data of a constant, flat; None for what is computed.
    """

    dtype: str
    elements: int
    data: Array | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return self.elements * np.dtype(self.dtype).itemsize

    def hold(self, elements: int) -> None:
        """Grow to at least so many elements."""
        self.elements = max(self.elements, elements)


@dataclass(frozen=True, eq=False)
class View:
    """A tensor in a buffer.

    Attributes:
        shape: logical, in PyTorch's order of axes.
        strides: elements per step of each axis.
        offset: element at index zero.
        affine: where the elements are quantized.
        boolean: the bytes are truth values.
    """

    buffer: Buffer
    shape: Shape
    strides: Shape
    offset: int = 0
    affine: Affine | None = None
    boolean: bool = False

    @property
    def dtype(self) -> str:
        """Type of the elements in memory."""
        return self.buffer.dtype

    @property
    def order(self) -> Shape:
        """Axes from the outermost in memory to the innermost."""
        return order_of(self.shape, self.strides)

    def is_dense(self, order: Sequence[int] | None = None) -> bool:
        """Whether the elements lie without gaps in an order of axes, by default the logical one."""
        wanted = dense_strides(self.shape, tuple(range(len(self.shape))) if order is None else order)
        pairs = zip(self.shape, self.strides, wanted, strict=True)
        return all(size == 1 or have == want for size, have, want in pairs)


@dataclass(eq=False)
class Lazy:
    """What some element-by-element operations will give, computed when a kernel needs it in memory.

    Attributes:
        shape: logical.
        dtype: the dtype of the result as arithmetic sees it: float32, int64, bool, ...; eight bits where there is an
            `affine`.
        compute: (one vector per argument, lanes) -> vector; arguments come as `dtypes` says.
        arguments: views, lazy values; shapes broadcast as PyTorch's do.
        dtypes: what each argument is turned to first.
        key: equal for equal arithmetic.
        torch: the same on torch tensors, for tables.
        affine: where the result is quantized.
        shared: several consumers: it is computed once, into memory.
        view: where it is, once it was computed.
    """

    shape: Shape
    dtype: str
    compute: Callable[[list[Any], int], Any]
    arguments: tuple[View | Lazy | Constant, ...]
    dtypes: tuple[str, ...]
    key: str
    torch: Callable[..., torch.Tensor]
    affine: Affine | None = None
    shared: bool = False
    view: View | None = field(default=None)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that is known now.

    Attributes:
        array: float, or integers with `scales`.
        scales: per index of `axis`, or one; None for plain numbers.
    """

    array: Array
    scales: Array | None = None
    axis: int = 0

    @property
    def shape(self) -> Shape:
        """Logical shape."""
        return tuple(self.array.shape)

    @property
    def real(self) -> Array:
        """The numbers that it stands for."""
        if self.scales is None:
            return self.array
        shape = [1] * self.array.ndim
        shape[self.axis if self.scales.size > 1 else 0] = -1
        real: Array = self.array.astype(np.float32) * self.scales.astype(np.float32).reshape(shape)
        return real


Tensor = View | Lazy | Constant
Value = Tensor | tuple[Tensor, ...]


def dense_strides(shape: Sequence[int], order: Sequence[int]) -> Shape:
    """Strides of a tensor without gaps whose axes lie in memory as `order` says, outermost first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def order_of(shape: Sequence[int], strides: Sequence[int]) -> Shape:
    """Axes from the largest stride to the smallest; axes of size 1, and repeated ones, stay where they are."""
    moving = [axis for axis, size in enumerate(shape) if size > 1 and strides[axis]]
    ranked = iter(sorted(moving, key=lambda axis: -strides[axis]))
    return tuple(next(ranked) if axis in moving else axis for axis in range(len(shape)))


def nhwc(rank: int) -> Shape:
    """The order of axes with channels (axis 1) last."""
    return (0, *range(2, rank), 1)


def elements(shape: Sequence[int]) -> int:
    """How many."""
    return math.prod(shape)
