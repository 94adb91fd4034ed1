"""MIL control flow, lists, state and the classifier head.

`cond`, `while_loop`, `read_state` and `coreml_update_state` act on the running program; their rules live in the
executor and are only named here (`EXECUTOR_OPS`). Lists are values: a write gives a new list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.dtypes import CARRIERS
from deploykit_targets.coreml.mil_evaluator.operation import Context, Op, ints, moves

EXECUTOR_OPS: Final = frozenset({"_const_symbolic", "const", "cond", "while_loop", "read_state", "coreml_update_state"})
"""Ops that the executor runs itself."""


@dataclass(frozen=True, slots=True)
class TensorList:
    """A MIL list.

    Attributes:
        items: the elements; None was never written.
        shape: the shape of an element; None where the program leaves it open.
        dtype: PyTorch type of the elements.
    """

    items: tuple[Tensor | None, ...]
    shape: tuple[int, ...] | None
    dtype: torch.dtype

    def read(self, index: int, context: Context) -> Tensor:
        """Element `index`; zeros if it was never written.

        Raises:
            EvaluationError: outside the list, or never written and of unknown shape.
        """
        if not 0 <= index < len(self.items):
            raise context.fail(f"index {index} is outside a list of length {len(self.items)}")
        item = self.items[index]
        if item is not None:
            return item
        shape = self.shape or next((tuple(other.shape) for other in self.items if other is not None), self.shape)
        if shape is None:
            raise context.fail(f"element {index} was never written, and its shape is unknown")
        return torch.zeros(shape, dtype=self.dtype)

    def write(self, index: int, value: Tensor, context: Context) -> TensorList:
        """A list with element `index` replaced; grows to hold it.

        Raises:
            EvaluationError: the index is negative.
        """
        if index < 0:
            raise context.fail(f"cannot write at negative index {index}")
        items = list(self.items) + [None] * (index + 1 - len(self.items))
        items[index] = value
        return TensorList(tuple(items), self.shape, self.dtype)


def _make_list(
    elem_shape: list[Tensor | str],
    init_length: Tensor | int = 1,
    dynamic_length: bool = True,
    dtype: str = "fp32",
) -> TensorList:
    """A string in `elem_shape` names a size that is only known once something is written."""
    del dynamic_length  # a list that may not grow is never written past its end by a valid program
    fixed = [int(size) for size in elem_shape if not isinstance(size, str)]
    shape = tuple(fixed) if len(fixed) == len(elem_shape) else None
    return TensorList((None,) * int(init_length), shape, CARRIERS[dtype])


def _list_length(ls: TensorList) -> Tensor:
    return torch.tensor(len(ls.items), dtype=torch.int32)


def _list_read(ls: TensorList, index: Tensor, context: Context) -> Tensor:
    return ls.read(int(index), context)


def _list_write(ls: TensorList, index: Tensor, value: Tensor, context: Context) -> TensorList:
    return ls.write(int(index), value, context)


def _list_gather(ls: TensorList, indices: Tensor, context: Context) -> Tensor:
    return torch.stack([ls.read(index, context) for index in ints(indices)])


def _list_scatter(ls: TensorList, indices: Tensor, value: Tensor, context: Context) -> TensorList:
    for index, item in zip(ints(indices), value.unbind(0), strict=True):
        ls = ls.write(index, item, context)
    return ls


def _classify(probabilities: Tensor, classes: list[str] | list[int]) -> tuple[str | int, Tensor]:
    """The most probable label, and the probabilities in the order of `classes`."""
    flat = probabilities.reshape(-1)
    return classes[int(flat.argmax())], flat


OPS: Final[dict[str, Op]] = {
    "classify": moves(_classify),
    "list_gather": moves(_list_gather, context=True),
    "list_length": moves(_list_length),
    "list_read": moves(_list_read, context=True),
    "list_scatter": moves(_list_scatter, context=True),
    "list_write": moves(_list_write, context=True),
    "make_list": moves(_make_list),
}
"""Rules of this family, by MIL name."""
