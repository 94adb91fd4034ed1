# mypy: disable-error-code="no-any-return"
# (functions of PyTorch return Any)
"""Operators written as simpler ones, in PyTorch: traced for one node and lowered like everything else (`fallback`).

Each function has the arguments of the overload that it stands for and is called with static shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deploykit.capture import plain, scatter

aten = torch.ops.aten
Decomposition = Callable[..., Any]
DECOMPOSITIONS: dict[Any, Decomposition] = {
    aten.col2im.default: plain.fold,
    aten.erfc.default: plain.erfc,
    aten.asinh.default: plain.asinh,
    aten.acosh.default: plain.acosh,
    aten.round.decimals: plain.round_to,
    aten.isinf.default: plain.isinf,
    aten.logaddexp.default: plain.logaddexp,
    aten.logaddexp2.default: plain.logaddexp2,
    aten.logcumsumexp.default: plain.logcumsumexp,
}
"""By overload."""


def _stands_for(*overloads: Any) -> Callable[[Decomposition], Decomposition]:
    def register(function: Decomposition) -> Decomposition:
        DECOMPOSITIONS.update(dict.fromkeys(overloads, function))
        return function

    return register


# Indexing: one number per picked element, and rows of a table.


@_stands_for(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Any number of integer indices: the indexed axes become one, which one number picks from."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    given = torch.broadcast_tensors(*(index for index in indices if index is not None))
    rest = [axis for axis in range(x.dim()) if axis not in axes]
    sizes = [x.shape[axis] for axis in axes]
    flat = torch.zeros_like(given[0])
    for index, size in zip(given, sizes, strict=True):
        flat = flat * size + torch.where(index < 0, index + size, index)
    rows = x.permute(*axes, *rest).reshape(math.prod(sizes), -1)
    picked = F.embedding(flat.reshape(-1), rows)
    result = picked.reshape(*flat.shape, *(x.shape[axis] for axis in rest))
    if axes != list(range(axes[0], axes[0] + len(axes))):
        return result  # indices apart from each other: their axes come first
    order = list(range(flat.dim()))
    others = list(range(flat.dim(), result.dim()))
    return result.permute(*others[: axes[0]], *order, *others[axes[0] :])


@_stands_for(aten.gather.default)
def _gather(x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    grids = [torch.arange(n).reshape([-1 if a == b else 1 for b in range(x.dim())]) for a, n in enumerate(index.shape)]
    grids[dim % x.dim()] = index
    return _index(x, grids)


_stands_for(aten.scatter_add.default)(scatter.scatter_add)
_stands_for(aten.scatter_reduce.two)(scatter.scatter_reduce)


@_stands_for(aten.flip.default)
def _flip(x: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in dims:
        x = x.index_select(dim, torch.arange(x.shape[dim] - 1, -1, -1))
    return x


@_stands_for(aten.roll.default)
def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    if not dims:
        return _roll(x.reshape(-1), shifts, (0,)).reshape(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        cut = -shift % x.shape[dim]
        x = torch.cat([x.narrow(dim, cut, x.shape[dim] - cut), x.narrow(dim, 0, cut)], dim)
    return x


@_stands_for(aten.slice_scatter.default)
def _slice_scatter(
    x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    if step != 1:
        raise NotImplementedError("a step between written slices")
    size = x.shape[dim]
    first = 0 if start is None else min(start if start >= 0 else start + size, size)
    last = first + source.shape[dim]
    return torch.cat([x.narrow(dim, 0, first), source, x.narrow(dim, last, size - last)], dim)


@_stands_for(aten.select_scatter.default)
def _select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    return _slice_scatter(x, source.unsqueeze(dim), dim, index % x.shape[dim])


@_stands_for(aten.one_hot.default)
def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    return (x.unsqueeze(-1) == torch.arange(num_classes)).to(torch.int64)


@_stands_for(aten.tril.default)
def _tril(x: Tensor, diagonal: int = 0) -> Tensor:
    kept = torch.arange(x.shape[-1]) <= torch.arange(x.shape[-2]).unsqueeze(-1) + diagonal
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


@_stands_for(aten.triu.default)
def _triu(x: Tensor, diagonal: int = 0) -> Tensor:
    kept = torch.arange(x.shape[-1]) >= torch.arange(x.shape[-2]).unsqueeze(-1) + diagonal
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


# Reductions.


def _axes(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(x.dim()))
    return [dim] if isinstance(dim, int) else list(dim)


@_stands_for(aten.var.correction)
def _var(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    axes = _axes(x, dim)
    count = math.prod(x.shape[axis] for axis in axes)
    centred = x - x.mean(axes, True)
    own = 1 if correction is None else correction
    return (centred * centred).sum(axes, keepdim) * (1 / max(0, count - own))


@_stands_for(aten.var.dim)
def _var_dim(x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return _var(x, dim, correction=int(unbiased), keepdim=keepdim)


@_stands_for(aten.std.correction)
def _std(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


@_stands_for(aten.std.dim)
def _std_dim(x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return _var(x, dim, correction=int(unbiased), keepdim=keepdim).sqrt()


@_stands_for(aten.var_mean.correction)
def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return _var(x, dim, correction=correction, keepdim=keepdim), x.mean(_axes(x, dim), keepdim)


@_stands_for(aten.any.dim, aten.any.dims, aten.any.default)
def _any(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return (x != 0).to(torch.float32).amax(_axes(x, dim), keepdim) != 0


@_stands_for(aten.all.dim, aten.all.dims, aten.all.default)
def _all(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return (x != 0).to(torch.float32).amin(_axes(x, dim), keepdim) != 0


def _first(x: Tensor, best: Tensor, dim: int) -> Tensor:
    """Smallest index at which `x` is `best`."""
    size = x.shape[dim]
    numbers = torch.arange(size).reshape([-1 if a == dim % x.dim() else 1 for a in range(x.dim())])
    return torch.where(x == best, numbers, size).amin(dim, True)


def _extreme(x: Tensor, dim: int, keepdim: bool, largest: bool) -> tuple[Tensor, Tensor]:
    best = x.amax(dim, True) if largest else x.amin(dim, True)
    where = _first(x, best, dim)
    return (best, where) if keepdim else (best.squeeze(dim), where.squeeze(dim))


@_stands_for(aten.max.dim)
def _max_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _extreme(x, dim, keepdim, True)


@_stands_for(aten.min.dim)
def _min_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _extreme(x, dim, keepdim, False)


@_stands_for(aten.argmax.default)
def _argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    if dim is None:
        return _extreme(x.reshape(-1), 0, False, True)[1]
    return _extreme(x, dim, keepdim, True)[1]


@_stands_for(aten.argmin.default)
def _argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    if dim is None:
        return _extreme(x.reshape(-1), 0, False, False)[1]
    return _extreme(x, dim, keepdim, False)[1]


@_stands_for(aten.max.default)
def _max(x: Tensor) -> Tensor:
    return x.amax(_axes(x, None))


@_stands_for(aten.min.default)
def _min(x: Tensor) -> Tensor:
    return x.amin(_axes(x, None))


_stands_for(aten.prod.dim_int)(plain.product)


@_stands_for(aten.cumsum.default)
def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """A product with a triangle of ones."""
    size = x.shape[dim]
    ones = (torch.arange(size).unsqueeze(-1) >= torch.arange(size)).to(torch.float32)
    return F.linear(x.to(torch.float32).transpose(dim, -1), ones).transpose(dim, -1).to(dtype or _sum_dtype(x))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.int64


@_stands_for(aten.linalg_vector_norm.default)
def _vector_norm(
    x: Tensor, ord: float = 2, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    axes = _axes(x, dim)
    if ord == math.inf:
        return x.abs().amax(axes, keepdim)
    if ord == 1:
        return x.abs().sum(axes, keepdim)
    if ord == 2:
        return (x * x).sum(axes, keepdim).sqrt()
    return x.abs().pow(ord).sum(axes, keepdim).pow(1 / ord)


@_stands_for(aten._log_softmax.default)
def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    centred = x - x.amax(dim, True)
    return centred - centred.exp().sum(dim, True).log()


@_stands_for(aten.log_softmax.int)
def _log_softmax_int(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return _log_softmax(x, dim)


@_stands_for(aten.logsumexp.default)
def _logsumexp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    axes = list(dim)
    best = x.amax(axes, True)
    total = (x - best).exp().sum(axes, True).log() + best
    return total if keepdim else total.squeeze(tuple(axes))


# Layers.


@_stands_for(aten.conv3d.default)
def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """A sum of convolutions in two dimensions, one for each depth of the window, over all depths as a batch."""
    stride, padding, dilation = (list(v) * 3 if len(v) == 1 else list(v) for v in (stride, padding, dilation))
    x = F.pad(x, (0, 0, 0, 0, padding[0], padding[0]))
    depth = (x.shape[2] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    total: Any = None
    for k in range(weight.shape[2]):
        first = k * dilation[0]
        frames = x[:, :, first : first + (depth - 1) * stride[0] + 1 : stride[0]].transpose(1, 2)
        flat = frames.reshape(-1, x.shape[1], *x.shape[3:])
        own = bias if k == 0 else None
        part = F.conv2d(flat, weight[:, :, k], own, stride[1:], padding[1:], dilation[1:], groups)
        total = part if total is None else total + part
    return total.reshape(x.shape[0], depth, *total.shape[1:]).transpose(1, 2)


def _windows(size: int, count: int) -> list[tuple[int, int]]:
    """First and last + 1 of each window of adaptive pooling."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


@_stands_for(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def _adaptive_average(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Uneven windows: one axis after the other."""
    for axis, count in zip((2, 3), output_size, strict=True):
        parts = [x.narrow(axis, a, b - a).mean(axis, True) for a, b in _windows(x.shape[axis], count)]
        x = torch.cat(parts, axis)
    return x


@_stands_for(aten.adaptive_max_pool2d.default)
def _adaptive_maximum(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, None]:
    return plain.adaptive_max_pool(x, output_size), None


@_stands_for(aten.group_norm.default)
def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    grouped = x.reshape(x.shape[0], num_groups, -1)
    centred = grouped - grouped.mean(2, True)
    scaled = centred * ((centred * centred).mean(2, True) + eps).rsqrt()
    return _channelwise(scaled.reshape(x.shape), weight, bias)


@_stands_for(aten.instance_norm.default)
def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Any,
    var: Any,
    use: bool,
    momentum: float,
    eps: float,
    _: bool,
) -> Tensor:
    return _group_norm(x, x.shape[1], weight, bias, eps)


@_stands_for(aten.batch_norm.default)
def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    _: bool,
) -> Tensor:
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    return _channelwise(x, scale, shift)


def _channelwise(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    x = x if scale is None else x * scale.reshape(shape)
    return x if shift is None else x + shift.reshape(shape)
