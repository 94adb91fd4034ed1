"""MIL ops that take, reverse or pad along axes: slices, windows, crops, pads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.operation import Op, axes_of, ints, moves


def _crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    dim = axis % x.ndim
    return x.unfold(dim, size, stride).movedim(-1, dim + 1)


def _reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip(axes_of(axes, x.ndim))


def _reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Reverse the first lengths[b] elements along `seq_axis`, for each b along `batch_axis`."""
    seq, batch = seq_axis % x.ndim, batch_axis % x.ndim
    position = torch.arange(x.shape[seq])
    length = lengths.to(torch.int64)[:, None]
    index = torch.where(position < length, length - 1 - position, position)  # (batch, seq)
    shape = [1] * x.ndim
    shape[batch], shape[seq] = index.shape
    index = index if batch < seq else index.T
    return torch.gather(x, seq, index.reshape(shape).expand(x.shape))


def _pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pads the last len(pad) / 2 axes, any rank: `constant`, `reflect` (edge not repeated) or `replicate`."""
    amounts = ints(pad)
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=constant_val)
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        if before or after:
            x = x.index_select(axis, _border_index(x.shape[axis], before, after, mode))
    return x


def _border_index(size: int, before: int, after: int, mode: str) -> Tensor:
    """Source index of each padded position.

    Raises:
        ValueError: a reflection would reach past the other edge.
    """
    position = torch.arange(-before, size + after)
    if mode == "replicate":
        return position.clamp(0, size - 1)
    last = size - 1
    if max(before, after) > last:
        raise ValueError(f"cannot reflect {max(before, after)} elements of an axis of size {size}")
    return last - (last - position.abs()).abs()


def slices(
    sizes: Sequence[int],
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> tuple[list[Tensor], list[int]]:
    """The index along every axis of a MIL slice (Python's rules, negative strides too), and the axes it drops."""
    rank = len(sizes)
    begins, ends = ints(begin), ints(end)
    steps = [1] * rank if stride is None else ints(stride)
    opened, closed, dropped = (
        [False] * rank if mask is None else [bool(flag) for flag in mask.tolist()]
        for mask in (begin_mask, end_mask, squeeze_mask)
    )
    index = []
    for axis, size in enumerate(sizes):
        if dropped[axis]:
            at = 0 if opened[axis] else begins[axis]
            index.append(torch.tensor([at % size]))
            continue
        span = slice(None if opened[axis] else begins[axis], None if closed[axis] else ends[axis], steps[axis])
        index.append(torch.arange(*_bounds(span, size)))
    return index, [axis for axis in range(rank) if dropped[axis]]


def _bounds(span: slice, size: int) -> tuple[int, int, int]:
    start, stop, step = span.indices(size)
    return start, (max(stop, start) if step > 0 else min(stop, start)), step


def _slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    index, dropped = slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, positions in enumerate(index):
        x = _take(x, axis, positions)
    return x.squeeze(tuple(dropped)) if dropped else x


def _take(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """`x` at evenly spaced positions along `axis`; a view where the step is positive."""
    count = len(positions)
    if count == x.shape[axis] and (count < 2 or positions[1] > positions[0]):
        return x
    step = int(positions[1] - positions[0]) if count > 1 else 1
    if count == 0 or step > 0:
        start = int(positions[0]) if count else 0
        return x[(slice(None),) * axis + (slice(start, start + count * step, step) if count else slice(0, 0),)]
    return x.index_select(axis, positions)


def _slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """A size of -1 takes everything from `begin` on; a negative begin counts from the end."""
    for axis, (first, length) in enumerate(zip(ints(begin), ints(size), strict=True)):
        start = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


def _slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """A copy of `x` whose slice is `update`."""
    index, _ = slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x.clone()
    grid = torch.meshgrid(*index, indexing="ij")
    result[grid] = update.reshape(grid[0].shape)
    return result


OPS: Final[dict[str, Op]] = {
    "crop": moves(_crop),
    "pad": moves(_pad),
    "reverse": moves(_reverse),
    "reverse_sequence": moves(_reverse_sequence),
    "slice_by_index": moves(_slice_by_index),
    "slice_by_size": moves(_slice_by_size),
    "slice_update": moves(_slice_update),
    "sliding_windows": moves(_sliding_windows),
}
"""Rules of this family, by MIL name."""
