"""Operators that show the same bytes otherwise: PyTorch itself says with which strides; a reshape may need a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from deploykit_targets.tvm.ops.table import Call, lowers
from deploykit_targets.tvm.values import Constant, Tensor, Value, View

if TYPE_CHECKING:
    from deploykit_targets.tvm.emit import Emitter


@lowers(
    "aten.permute.default",
    "aten.transpose.int",
    "aten.t.default",
    "aten.movedim.int",
    "aten.select.int",
    "aten.slice.Tensor",
    "aten.narrow.default",
    "aten.expand.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
    "aten.split.Tensor",
    "aten.split_with_sizes.default",
    "aten.chunk.default",
    "aten.unbind.int",
    "aten.diagonal.default",
    "aten.unfold.default",
    "aten.alias.default",
    "aten.detach.default",
)
def aliased(c: Call) -> Value:
    """Any operator that PyTorch computes as a view."""
    source = c.node.args[0]
    assert isinstance(source, Node)
    value = c.lowering.tensor(source)
    if isinstance(value, Constant):
        return _folded(c, value)
    view = c.emit.view(value)
    shown = _call(c.node, _stand_in(view))
    if isinstance(shown, torch.Tensor):
        return _as(view, shown)
    return tuple(_as(view, part) for part in shown)


@lowers("aten.clone.default", "aten.contiguous.default", "aten.lift_fresh_copy.default")
def same(c: Call) -> Tensor:
    """Copies: no value is written twice, so none is needed."""
    return c.tensor("self")


@lowers("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def reshape(c: Call) -> Tensor:
    """A reshape to a static shape."""
    return reshaped(c.emit, c.tensor("self"), c.shape)


@lowers("aten.flatten.using_ints", "aten.unflatten.int")
def flatten(c: Call) -> Tensor:
    """flatten and unflatten."""
    return reshaped(c.emit, c.tensor("self"), c.shape)


def reshaped(emit: Emitter, value: Tensor, shape: Sequence[int]) -> Tensor:
    """A value with another shape; copied where no strides show the same bytes so."""
    if isinstance(value, Constant):
        return Constant(value.real.reshape(tuple(shape)))
    view = emit.view(value)
    try:
        return _as(view, _stand_in(view).view(tuple(shape)))
    except RuntimeError:  # PyTorch: "view size is not compatible with input tensor's size and stride"
        view = emit.dense(view)
        return _as(view, _stand_in(view).view(tuple(shape)))


def _stand_in(view: View) -> torch.Tensor:
    """A tensor of that geometry without data."""
    storage = torch.empty(0, device="meta")
    return torch.as_strided(storage, view.shape, view.strides, view.offset)


def _as(view: View, shown: torch.Tensor) -> View:
    return replace(view, shape=tuple(shown.shape), strides=shown.stride(), offset=int(shown.storage_offset()))


def _call(node: Node, first: torch.Tensor) -> Any:
    target: Any = node.target
    return target(first, *node.args[1:], **node.kwargs)


def _folded(c: Call, value: Constant) -> Value:
    result = _call(c.node, torch.from_numpy(value.real))
    if isinstance(result, torch.Tensor):
        return Constant(result.contiguous().numpy())
    return tuple(Constant(part.contiguous().numpy()) for part in result)
