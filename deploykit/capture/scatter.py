# mypy: disable-error-code="no-any-return"
# (functions of PyTorch return Any)
"""`scatter_add` and `scatter_reduce` by comparison, for toolchains that have no scatter, or none that adds.

Every place is compared with every index, which multiplies the size of the scattered axis into what is scattered: right
for graphs of some hundred nodes and edges, histograms and pooling by segment, and slow for large ones. Where all
columns have one index (`index_add`, which capture writes as `scatter_add`), rows are summed by one matrix product.

Each function has the arguments of its operator and is called with static shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float = 1) -> Tensor:
    """`aten.index_add` as a `scatter_add`, which more toolchains have."""
    axis = dim % max(x.dim(), 1)
    shape = [-1 if each == axis else 1 for each in range(source.dim())]
    spread = index.reshape(shape).expand(source.shape)
    return torch.scatter_add(x, axis, spread, source if alpha == 1 else source * alpha)


def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`aten.scatter_add`."""
    return scatter_reduce(x, dim, index, source, "sum")


def scatter_add_in_part(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`aten.scatter_add` whose index covers a part of the other axes, as one that covers all of a part of `x`."""
    axis = dim % x.dim()
    for other, size in enumerate(index.shape):
        if other != axis and size < x.shape[other]:
            part, rest = x.narrow(other, 0, size), x.narrow(other, size, x.shape[other] - size)
            return torch.cat([scatter_add_in_part(part, axis, index, source), rest], other)
    return torch.scatter_add(x, axis, index, source[tuple(slice(size) for size in index.shape)])


def add_rows(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`aten.scatter_add` where `index` says the same for every column: a matrix product with rows of 0 and 1."""
    axis = dim % x.dim()
    column = index.movedim(axis, 0).flatten(1)[:, 0]
    places = torch.arange(x.shape[axis], dtype=index.dtype)
    hit = (places[:, None] == column[None]).to(source.dtype)
    rows = source.movedim(axis, 0)
    added = torch.matmul(hit, rows.flatten(1)).reshape(x.shape[axis], *rows.shape[1:])
    return x + added.movedim(0, axis)


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """`aten.scatter_reduce` with `sum`, `mean`, `amax`, `amin` or `prod`."""
    axis = dim % x.dim()
    for other, size in enumerate(index.shape):
        if other != axis and size < x.shape[other]:
            part, rest = x.narrow(other, 0, size), x.narrow(other, size, x.shape[other] - size)
            found = scatter_reduce(part, axis, index, source, reduce, include_self=include_self)
            return torch.cat([found, rest], other)
    source = source[tuple(slice(size) for size in index.shape)]
    shape = [-1 if each == axis else 1 for each in range(x.dim() + 1)]
    places = torch.arange(x.shape[axis], dtype=index.dtype).reshape(shape)
    hit, values = index.unsqueeze(axis) == places, source.unsqueeze(axis)
    if reduce in ("sum", "mean"):
        return _summed(x, axis, hit, values, of=reduce, include_self=include_self)
    function, join, nothing = _reductions(x.dtype)[reduce]
    found = function(_only(hit, values, nothing), axis + 1)
    return join(x, found) if include_self else torch.where(_any(hit, axis + 1), found, x)


def _summed(x: Tensor, axis: int, hit: Tensor, values: Tensor, *, of: str, include_self: bool) -> Tensor:
    total = _only(hit, values, 0).sum(axis + 1).to(x.dtype)
    total = x + total if include_self else total
    if of == "mean":
        times = hit.to(x.dtype).sum(axis + 1).to(x.dtype) + int(include_self)
        times = times.clamp(min=1)
        total = total / times if x.is_floating_point() else torch.div(total, times, rounding_mode="floor")
    return total if include_self else torch.where(_any(hit, axis + 1), total, x)


def _only(hit: Tensor, values: Tensor, nothing: float) -> Tensor:
    """The values where they are meant, and what adds nothing elsewhere."""
    return values.expand(hit.shape).masked_fill(torch.logical_not(hit), nothing)


def _any(hit: Tensor, axis: int) -> Tensor:
    return hit.to(torch.int32).sum(axis) > 0


def _reductions(dtype: torch.dtype) -> dict[str, tuple[Any, Any, float]]:
    """The reduction of an axis, that of two tensors, and the value that changes nothing."""
    ends = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return {
        "prod": (torch.prod, torch.mul, 1),
        "amax": (torch.amax, torch.maximum, ends.min),
        "amin": (torch.amin, torch.minimum, ends.max),
    }
