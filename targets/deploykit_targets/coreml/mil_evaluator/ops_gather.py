"""MIL gathers and scatters, all over one flat index.

Before iOS17 an index may be negative and counts from the end. Since iOS17 a negative index is out of range, and an
index out of range is an error when the op asks to validate and UNDEFINED when it does not. An evaluator that serves
as reference must not invent what is undefined, so that is an error too, unless the run's settings ask to clamp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.operation import IOS17, Context, Op, moves, rounds


def checked_index(indices: Tensor, size: int | Tensor, context: Context, *, validate: bool = False) -> Tensor:
    """int64 indices in [0, size), by the rules of the op set.

    Args:
        indices: any integers.
        size: the axis' size, or one size per entry of the last axis of `indices`.
        context: names the op and its op set.
        validate: the op's `validate_indices`.
    Raises:
        EvaluationError: an index is out of range.
    """
    index = indices.to(torch.int64)
    if context.opset < IOS17:
        index = torch.where(index < 0, index + size, index)
    wrong = (index < 0) | (index >= size)
    if not bool(wrong.any()):
        return index
    if not validate and context.settings.undefined_indices == "clamp":
        return torch.minimum(index.clamp_min(0), torch.as_tensor(size, dtype=torch.int64) - 1)
    limit = size if isinstance(size, int) else size.tolist()
    raise context.fail(
        f"index {int(indices[wrong][0])} is outside [0, {limit})",
        hint=None if validate else 'Core ML leaves the result undefined; undefined_indices="clamp" evaluates anyway',
    )


def _gather(
    x: Tensor,
    indices: Tensor,
    context: Context,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1:]."""
    dim = axis % x.ndim
    index = checked_index(torch.as_tensor(indices), x.shape[dim], context, validate=validate_indices)
    inner = index.shape[batch_dims:]
    if batch_dims == 0:
        return x.index_select(dim, index.reshape(-1)).reshape(x.shape[:dim] + inner + x.shape[dim + 1 :])
    view = index.reshape(index.shape[:batch_dims] + (1,) * (dim - batch_dims) + (-1,) + (1,) * (x.ndim - dim - 1))
    wide = view.expand((*x.shape[:dim], view.shape[dim], *x.shape[dim + 1 :]))
    return torch.gather(x, dim, wide).reshape(x.shape[:dim] + inner + x.shape[dim + 1 :])


def _gather_along_axis(
    x: Tensor, indices: Tensor, context: Context, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    dim = axis % x.ndim
    index = checked_index(indices, x.shape[dim], context, validate=validate_indices)
    return torch.gather(x, dim, index)


def _gather_nd(
    x: Tensor, indices: Tensor, context: Context, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """indices.shape[:-1] + x.shape[batch_dims + depth:], where depth is the last size of `indices`."""
    depth = indices.shape[-1]
    sizes = torch.tensor(x.shape[batch_dims : batch_dims + depth], dtype=torch.int64)
    index = checked_index(indices, sizes, context, validate=validate_indices)
    if batch_dims == 0:
        return x[index.unbind(-1)]
    batches = torch.meshgrid(*(torch.arange(size) for size in x.shape[:batch_dims]), indexing="ij")
    middle = (1,) * (index.ndim - 1 - batch_dims)
    prefix = tuple(batch.reshape(batch.shape + middle) for batch in batches)
    return x[prefix + index.unbind(-1)]


# --- scatter --------------------------------------------------------------------------------------------------


def _combine(data: Tensor, index: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Combine flat `updates` into a copy of flat `data` at flat `index`; duplicates apply in order."""
    result = data.clone()
    if mode == "update":
        return _write(result, index, updates)
    if mode in ("add", "sub"):
        return result.index_add_(0, index, updates, alpha=1 if mode == "add" else -1)
    if mode in ("max", "min"):
        return result.scatter_reduce_(0, index, updates, "amax" if mode == "max" else "amin")
    if mode == "mul":
        return result.scatter_reduce_(0, index, updates, "prod")
    if mode == "div":
        divisor = torch.ones_like(result).scatter_reduce_(0, index, updates, "prod")
        return torch.div(result, divisor, rounding_mode=None if result.is_floating_point() else "trunc")
    raise ValueError(f"unknown scatter mode {mode!r}")


def _write(result: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Assign; of several updates to one place the last stays (index assignment does not promise that)."""
    order = torch.arange(len(index))
    last = torch.full_like(result, -1, dtype=torch.int64).scatter_reduce_(0, index, order, "amax")
    touched = last >= 0
    result[touched] = updates[last[touched]]
    return result


def _scattered(data: Tensor, flat_index: Tensor, updates: Tensor, mode: str) -> Tensor:
    flat = _combine(data.reshape(-1), flat_index.reshape(-1), updates.to(data.dtype).reshape(-1), mode)
    return flat.reshape(data.shape)


def _positions(shape: torch.Size) -> Tensor:
    return torch.arange(shape.numel()).reshape(shape)


def _scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    context: Context,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    dim = axis % data.ndim
    index = checked_index(indices, data.shape[dim], context, validate=validate_indices)
    targets = _positions(data.shape).index_select(dim, index.reshape(-1))
    return _scattered(data, targets, updates, mode)


def _scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    context: Context,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    dim = axis % data.ndim
    index = checked_index(indices, data.shape[dim], context, validate=validate_indices)
    return _scattered(data, torch.gather(_positions(data.shape), dim, index), updates, mode)


def _scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    context: Context,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    sizes = torch.tensor(data.shape[: indices.shape[-1]], dtype=torch.int64)
    index = checked_index(indices, sizes, context, validate=validate_indices)
    return _scattered(data, _positions(data.shape)[index.unbind(-1)], updates, mode)


def _rule(function: Callable[..., Tensor], *, exact: bool) -> Op:
    return moves(function, context=True) if exact else rounds(function, context=True)


OPS: Final[dict[str, Op]] = {
    "gather": _rule(_gather, exact=True),
    "gather_along_axis": _rule(_gather_along_axis, exact=True),
    "gather_nd": _rule(_gather_nd, exact=True),
    "scatter": _rule(_scatter, exact=False),
    "scatter_along_axis": _rule(_scatter_along_axis, exact=False),
    "scatter_nd": _rule(_scatter_nd, exact=False),
}
"""Rules of this family, by MIL name."""
