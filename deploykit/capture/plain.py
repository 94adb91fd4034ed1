# mypy: disable-error-code="no-any-return"
# (functions of PyTorch return Any)
"""Operators that PyTorch has kernels of its own for and few runtimes have, written with plain ones.

Each function has the arguments of its operator and is called with static shapes. Where every value is compared with
every other (`cummax`, `cumprod`), the size of the axis is squared: right for some hundred values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def hypot(left: Tensor, right: Tensor) -> Tensor:
    """`aten.hypot`, which does not overflow where its squares would: the larger takes the smaller's ratio to it."""
    left, right = left.abs(), right.abs()
    large, small = torch.maximum(left, right), torch.minimum(left, right)
    ratio = small / torch.where(large == 0, torch.full((), 1.0, dtype=large.dtype), large)
    return large * (ratio * ratio + 1).sqrt()


def copysign(size: Tensor, sign: Any) -> Tensor:
    """`aten.copysign` of a tensor or a number; a negative zero counts as zero, as in most runtimes."""
    if not isinstance(sign, Tensor):
        return size.abs() if sign >= 0 else -size.abs()
    return torch.where(sign < 0, -size.abs(), size.abs())


def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """`aten.kthvalue`: the last of the `k` smallest."""
    if x.dim() == 0:
        return x, torch.zeros((), dtype=torch.int64)
    found = torch.topk(x, k, dim, False, True)
    values, indices = (each.narrow(dim, k - 1, 1) for each in found)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


def median(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """`aten.median.dim`, and `aten.median` of all values: the lower one of the two in the middle."""
    if dim is None:
        flat = x.reshape(-1)
        return kthvalue(flat, (flat.shape[0] + 1) // 2)[0]
    size = x.shape[dim] if x.dim() else 1
    return kthvalue(x, (size + 1) // 2, dim, keepdim)


def adaptive_max_pool(x: Tensor, output_size: int | Sequence[int]) -> Tensor:
    """The values of `aten.adaptive_max_pool1d`, `2d` and `3d`: the largest of each of the regions along every axis."""
    sizes = [output_size] if isinstance(output_size, int) else list(output_size)
    for axis, regions in zip(range(x.dim() - len(sizes), x.dim()), sizes, strict=True):
        length = x.shape[axis]
        if length % regions == 0:
            x = x.unflatten(axis, (regions, length // regions)).amax(axis + 1)
            continue
        starts = [place * length // regions for place in range(regions)]
        ends = [-(-(place + 1) * length // regions) for place in range(regions)]
        x = torch.cat(
            [x.narrow(axis, a, b - a).amax(axis, keepdim=True) for a, b in zip(starts, ends, strict=True)], axis
        )
    return x


def cummax(x: Tensor, dim: int) -> Tensor:
    """The values of `aten.cummax`."""
    return _running(x, dim, float("-inf")).amax(-1).movedim(-1, dim)


def cummin(x: Tensor, dim: int) -> Tensor:
    """The values of `aten.cummin`."""
    return _running(x, dim, float("inf")).amin(-1).movedim(-1, dim)


def cumprod(x: Tensor, dim: int) -> Tensor:
    """`aten.cumprod`."""
    return _running(x, dim, 1.0).prod(-1).movedim(-1, dim)


def _running(x: Tensor, dim: int, outside: float) -> Tensor:
    """(..., n, n): for every place of the axis the values up to it, and `outside` behind them."""
    rows = x.movedim(dim, -1)
    places = torch.arange(x.shape[dim])
    return torch.where(places[None] <= places[:, None], rows.unsqueeze(-2), torch.full((), outside, dtype=x.dtype))


def searchsorted(edges: Tensor, x: Tensor, right: bool = False, side: str | None = None) -> Tensor:
    """`aten.searchsorted`: how many edges lie below each value (or, on the right side, not above it).

    Args:
        edges: sorted, of one axis, or with the leading axes of `x`.
    """
    right = right or side == "right"
    near = edges if edges.dim() == 1 else edges.unsqueeze(-2)
    below = near <= x.unsqueeze(-1) if right else near < x.unsqueeze(-1)
    return below.to(torch.int64).sum(-1)


def bucketize(x: Tensor, edges: Tensor, *, right: bool = False, **_: Any) -> Tensor:
    """`aten.bucketize`."""
    return searchsorted(edges, x, right)


def top_of_rows(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """`aten.topk` of the rows of a matrix, and the values by their indices: some runtimes know no other."""
    rows = x.movedim(dim, -1)
    indices = torch.topk(rows.reshape(-1, rows.shape[-1]), k, 1, largest, sorted)[1]
    values = torch.gather(rows.reshape(-1, rows.shape[-1]), 1, indices)
    shape = (*rows.shape[:-1], k)
    return values.reshape(shape).movedim(-1, dim), indices.reshape(shape).movedim(-1, dim)


def fold(
    columns: Tensor, output_size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int],
    padding: Sequence[int], stride: Sequence[int],
) -> Tensor:  # fmt: skip
    """`aten.col2im` as the transposed convolution that puts each value of a window at its place, and adds."""
    height, width = kernel
    batch = columns if columns.dim() == 3 else columns[None]
    steps = [
        (size + 2 * pad - apart * (window - 1) - 1) // step + 1
        for size, pad, apart, window, step in zip(output_size, padding, dilation, kernel, stride, strict=True)
    ]
    windows = batch.reshape(-1, height * width, *steps)
    count = torch.arange(height * width)
    places = (count[:, None] == count).to(columns.dtype).reshape(-1, 1, height, width)
    reached = [(n - 1) * step + apart * (window - 1) + 1 for n, step, apart, window in
               zip(steps, stride, dilation, kernel, strict=True)]  # fmt: skip
    whole = torch.conv_transpose2d(windows, places, None, stride, 0, 0, 1, dilation)
    for axis, (size, pad, have) in enumerate(zip(output_size, padding, reached, strict=True), 2):
        behind = max(pad + size - have, 0)
        widths = [0] * (2 * (3 - axis)) + [0, behind]
        whole = torch.nn.functional.pad(whole, widths) if behind else whole
        whole = whole.narrow(axis, pad, size)
    image = whole.reshape(batch.shape[0], -1, *output_size)
    return image if columns.dim() == 3 else image[0]


def pad(x: Tensor, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """`aten.pad`, for circular padding and padding that cuts: by pieces."""
    for pair in range(len(widths) // 2):
        axis, before, after = x.dim() - 1 - pair, widths[2 * pair], widths[2 * pair + 1]
        start, end = max(-before, 0), x.shape[axis] - max(-after, 0)
        x = x.narrow(axis, start, end - start)
        wider = [0] * (2 * pair) + [max(before, 0), max(after, 0)]
        if mode == "circular":
            size = x.shape[axis]
            x = torch.cat([x.narrow(axis, size - wider[-2], wider[-2]), x, x.narrow(axis, 0, wider[-1])], axis)
        elif any(wider):
            x = torch.nn.functional.pad(x, wider, mode, value)
    return x


def as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """`aten.as_strided`: by places in memory, as a contiguous tensor has them."""
    places = torch.full((), storage_offset or 0, dtype=torch.int64)
    for length, step in zip(size, stride, strict=True):
        places = places.unsqueeze(-1) + torch.arange(length) * step
    return x.reshape(-1).index_select(0, places.reshape(-1)).reshape(size)


def unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """`aten.unfold`: windows of an axis, whose elements become the last one."""
    axis = dimension % x.dim()
    count = (x.shape[axis] - size) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(size)
    return x.index_select(axis, places.reshape(-1)).unflatten(axis, (count, size)).movedim(axis + 1, -1)


def erfc(x: Tensor) -> Tensor:
    """`aten.erfc`; its relative error is large where it is near 0."""
    return 1 - torch.erf(x)


def asinh(x: Tensor) -> Tensor:
    """`aten.asinh`, by the size alone: the sum of a negative number and its root would lose its digits."""
    return x.sign() * torch.log(x.abs() + (x * x + 1).sqrt())


def acosh(x: Tensor) -> Tensor:
    """`aten.acosh`."""
    return torch.log(x + (x * x - 1).sqrt())


def trunc(x: Tensor) -> Tensor:
    """`aten.trunc`."""
    return x.sign() * x.abs().floor()


def fmod(x: Tensor, other: Any) -> Tensor:
    """`aten.fmod`."""
    return x - other * trunc(x / other)


def round_to(x: Tensor, *, decimals: int) -> Tensor:
    """`aten.round.decimals`."""
    return torch.round(x * 10.0**decimals) / 10.0**decimals


def isinf(x: Tensor) -> Tensor:
    """`aten.isinf`."""
    return x.abs() == float("inf")


def exp2(x: Tensor) -> Tensor:
    """`aten.exp2`."""
    return torch.exp(x * math.log(2))


def logaddexp(left: Tensor, right: Tensor) -> Tensor:
    """`aten.logaddexp`; two equal infinities have no difference."""
    apart = torch.where(left == right, torch.full((), 0.0, dtype=left.dtype), (left - right).abs())
    return torch.maximum(left, right) + torch.log(1 + torch.exp(-apart))


def logaddexp2(left: Tensor, right: Tensor) -> Tensor:
    """`aten.logaddexp2`."""
    two = math.log(2)
    return logaddexp(left * two, right * two) / two


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """`aten.logcumsumexp`."""
    return torch.logsumexp(_running(x, dim, float("-inf")), -1).movedim(-1, dim)


def product(x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """`aten.prod.dim_int` by halves."""
    rows = x.movedim(dim, -1) if dtype is None else x.movedim(dim, -1).to(dtype)
    while rows.shape[-1] > 1:
        half = rows.shape[-1] // 2
        pairs = rows[..., :half] * rows[..., half : 2 * half]
        rows = torch.cat([pairs, rows[..., 2 * half :]], -1) if rows.shape[-1] % 2 else pairs
    return rows.movedim(-1, dim) if keepdim else rows.squeeze(-1)


def lerp(start: Tensor, end: Tensor, weight: Any) -> Tensor:
    """`aten.lerp`."""
    return start + weight * (end - start)


def xlogy(x: Any, y: Any) -> Tensor:
    """`aten.xlogy`: 0 where `x` is."""
    nothing = x == 0
    return x * torch.log(torch.where(nothing, torch.full((), 1.0, dtype=y.dtype), y))


def index_copy(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`aten.index_copy` as a scatter, which more runtimes have."""
    shape = [-1 if each == dim % x.dim() else 1 for each in range(source.dim())]
    return torch.scatter(x, dim, index.reshape(shape).expand(source.shape), source)


def index_fill(x: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`aten.index_fill`, with a number or a tensor without axes: a choice by place."""
    axis = dim % x.dim()
    places = torch.arange(x.shape[axis], dtype=index.dtype)
    hit = (places[:, None] == index.reshape(1, -1)).any(1)
    shape = [-1 if each == axis else 1 for each in range(x.dim())]
    filled = value.to(x.dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype)
    return torch.where(hit.reshape(shape), filled, x)


def leaky_in_evaluation(x: Tensor, lower: float = 0.125, upper: float = 1 / 3, *_: Any, **__: Any) -> Tensor:
    """`aten.rrelu` of a model that is not trained: its slope is the mean of the two."""
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)
