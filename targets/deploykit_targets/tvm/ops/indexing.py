"""Rows picked by integers, and tensors made of numbers alone."""

from __future__ import annotations

import math

import torch

from deploykit_targets.tvm.emit import dtype_of, whole
from deploykit_targets.tvm.kernels.gather import gather
from deploykit_targets.tvm.ops.table import Call, NotCoveredError, lowers
from deploykit_targets.tvm.values import Constant, Tensor


@lowers("aten.embedding.default")
def embedding(c: Call) -> Tensor:
    """Rows of a table."""
    return _gathered(c, c.tensor("weight"), 0, c.tensor("indices"))


@lowers("aten.index_select.default")
def index_select(c: Call) -> Tensor:
    """Slices along one axis."""
    value = c.tensor("self")
    return _gathered(c, value, int(c["dim"]) % len(value.shape), c.tensor("index"))


@lowers("aten.index.Tensor")
def index(c: Call) -> Tensor:
    """One tensor of integers along one axis."""
    given = [(axis, found) for axis, found in enumerate(c["indices"]) if found is not None]
    if len(given) != 1:
        raise NotCoveredError("several axes are indexed by tensors")
    ((axis, found),) = given
    indices = c.lowering.tensor(found)
    if dtype_of(indices) not in ("int64", "int32"):
        raise NotCoveredError("it is indexed by truth values")
    return _gathered(c, c.tensor("self"), axis, indices)


def _gathered(c: Call, value: Tensor, axis: int, indices: Tensor) -> Tensor:
    source = c.emit.dense(value)
    chosen = c.emit.dense(indices)
    outer, count = math.prod(source.shape[:axis]), source.shape[axis]
    inner, picked = math.prod(source.shape[axis + 1 :]), math.prod(chosen.shape)
    dtype = "bool" if source.boolean else source.dtype
    result = c.emit.new(c.shape, dtype, None, source.affine)
    key = (outer, count, inner, picked, source.dtype, chosen.dtype)
    c.emit.call("gather", key, lambda: gather(*key), [whole(source), whole(chosen)], [whole(result)])
    return result


@lowers(
    "aten.full.default",
    "aten.arange.start_step",
    "aten.arange.default",
    "aten.arange.start",
    "aten.zeros.default",
    "aten.ones.default",
    "aten.scalar_tensor.default",
    "aten.full_like.default",
    "aten.zeros_like.default",
    "aten.ones_like.default",
)
def created(c: Call) -> Constant:
    """What PyTorch makes of numbers alone, now."""
    known = c.node.meta["val"]
    arguments = [torch.empty(known.shape, dtype=known.dtype) if hasattr(a, "meta") else a for a in c.node.args]
    target = c.node.target
    result: torch.Tensor = target(*arguments, **c.node.kwargs)  # type: ignore[operator]
    return Constant(result.contiguous().numpy())
