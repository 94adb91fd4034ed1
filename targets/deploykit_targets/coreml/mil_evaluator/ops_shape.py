"""MIL ops that rearrange whole tensors: reshapes, transpositions, joins, splits, block moves."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.operation import IOS17, Context, Op, axes_of, ints, moves


def _reshape(x: Tensor, shape: Tensor, context: Context) -> Tensor:
    """-1 infers a size. 0 copies one: by position before iOS17, counted from the right (missing ones are 1) since."""
    wanted = ints(shape)
    if 0 in wanted and x.numel() > 0:
        sizes = list(x.shape)
        if context.opset >= IOS17:
            sizes = ([1] * len(wanted) + sizes)[-len(wanted) :]
        wanted = [size if size != 0 else sizes[axis] for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _reshape_like(
    x: Tensor,
    ref_tensors: list[Tensor],
    begins: list[Tensor | int],
    ends: list[Tensor | int],
    end_masks: list[Tensor | bool],
) -> Tensor:
    shape: list[int] = []
    for reference, begin, end, open_ended in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += list(reference.shape)[int(begin) : None if open_ended else int(end)]
    return x.reshape(shape)


def _expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes_of(axes, x.ndim + len(ints(axes)))):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Axes that are not of size 1 stay."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes_of(axes, x.ndim)))


def _transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(axes_of(perm, x.ndim))


def _flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def _identity(x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return x


def _concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Scalars join to a vector; interleaved tensors alternate along `axis`."""
    if values[0].ndim == 0:
        return torch.stack(values)
    if not interleave:
        return torch.cat(values, dim=axis)
    dim = axis % values[0].ndim
    return torch.stack(values, dim=dim + 1).flatten(dim, dim + 1)


def _stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, dim=axis)


def _split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is not None:
        return torch.split(x, ints(split_sizes), dim=axis)
    assert num_splits is not None
    return torch.split(x, x.shape[axis] // num_splits, dim=axis)


def _tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(ints(reps))


# --- blocks ---------------------------------------------------------------------------------------------------


def _depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channels are ordered (block row, block column, channel), as in TensorFlow; `pixel_shuffle` differs."""
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, b, b, c // (b * b), h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


def _pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


def _space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """The batch becomes (block row, block column, batch)."""
    (bh, bw), (top, bottom, left, right) = ints(block_shape), ints(paddings)
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // bh, bh, w // bw, bw)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(bh * bw * n, c, h // bh, w // bw)


def _batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    (bh, bw), (top, bottom, left, right) = ints(block_shape), ints(crops)
    n, c, h, w = x.shape
    blocks = x.reshape(bh, bw, n // (bh * bw), c, h, w)
    full = blocks.permute(2, 3, 4, 0, 5, 1).reshape(n // (bh * bw), c, h * bh, w * bw)
    return full[:, :, top : h * bh - bottom, left : w * bw - right]


OPS: Final[dict[str, Op]] = {
    "batch_to_space": moves(_batch_to_space),
    "concat": moves(_concat),
    "depth_to_space": moves(_depth_to_space),
    "expand_dims": moves(_expand_dims),
    "flatten2d": moves(_flatten2d),
    "identity": moves(_identity),
    "pixel_shuffle": moves(_pixel_shuffle),
    "pixel_unshuffle": moves(_pixel_unshuffle),
    "reshape": moves(_reshape, context=True),
    "reshape_like": moves(_reshape_like),
    "shape": moves(_shape),
    "space_to_batch": moves(_space_to_batch),
    "space_to_depth": moves(_space_to_depth),
    "split": moves(_split),
    "squeeze": moves(_squeeze),
    "stack": moves(_stack),
    "tile": moves(_tile),
    "transpose": moves(_transpose),
}
"""Rules of this family, by MIL name."""
