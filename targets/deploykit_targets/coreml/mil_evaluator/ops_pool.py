"""MIL pools: `avg_pool`, `max_pool`, `l2_pool`.

With `ceil_mode`, windows may reach past the padded input; what lies there counts for nothing, in an average too.
Output sizes are those of the op set's formula. It drops a last window that would start past the input only where
there is padding; without padding such a window would hold nothing, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.operation import Op, ints, moves, rounds
from deploykit_targets.coreml.mil_evaluator.windows import Pads, pad_spatial, window_pads

_AVERAGE: Final[dict[int, Callable[..., Any]]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMUM: Final[dict[int, Callable[..., Any]]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True, slots=True)
class _Windows:
    """Geometry of a pool: kernel and stride per axis, the pads that count, and the reach past them."""

    kernel: list[int]
    strides: list[int]
    pads: Pads
    reach: Pads


def _windows(x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, pad: Tensor, ceil_mode: bool) -> _Windows:
    """Geometry of a pool over `x`.

    Raises:
        ValueError: a window of ceil mode would hold no element.
    """
    kernel, stride = ints(kernel_sizes), ints(strides)
    pads = window_pads(pad_type, x.shape[2:], kernel, stride, [1] * len(kernel), ints(pad))
    reach = []
    for size, k, step, (before, after) in zip(x.shape[2:], kernel, stride, pads, strict=True):
        padded = size + before + after
        count = (padded - k) // step + 1
        if ceil_mode:
            count = -(-(padded - k) // step) + 1
            if (count - 1) * step >= size + before and before + after > 0:
                count -= 1
        if (count - 1) * step >= padded:
            raise ValueError(f"ceil_mode puts a window past the input of size {size}, where it has no value")
        reach.append((before, after + max(0, (count - 1) * step + k - padded)))
    return _Windows(kernel, stride, pads, reach)


def _max_pool(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, pad: Tensor, ceil_mode: bool = False
) -> Tensor:
    at = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padded = pad_spatial(x, at.reach, value=-math.inf)
    result: Tensor = _MAXIMUM[len(at.kernel)](padded, at.kernel, at.strides)
    return result


def _avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    at = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean: Tensor = _AVERAGE[len(at.kernel)](pad_spatial(x, at.reach), at.kernel, at.strides)
    counted = [(0, 0)] * len(at.pads) if exclude_padding_from_average else at.pads
    if counted == at.reach:
        return mean
    return mean * _overcount(x, at, counted)


def _overcount(x: Tensor, at: _Windows, counted: Pads) -> Tensor:
    """Window size / number of counted elements, per output position; broadcasts over batch and channel."""
    ratio = torch.ones((), dtype=x.dtype)
    for axis, (before, after) in enumerate(counted):
        low, high = at.reach[axis]
        line = F.pad(torch.ones(before + x.shape[2 + axis] + after), (low - before, high - after))
        hits = line.unfold(0, at.kernel[axis], at.strides[axis]).sum(-1)
        ratio = ratio[..., None] * (at.kernel[axis] / hits)
    return ratio


def _l2_pool(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, pad: Tensor, ceil_mode: bool = False
) -> Tensor:
    """Square root of the sum (not the mean) of squares in each window."""
    at = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean: Tensor = _AVERAGE[len(at.kernel)](pad_spatial(x * x, at.reach), at.kernel, at.strides)
    return torch.sqrt(mean * math.prod(at.kernel))


OPS: Final[dict[str, Op]] = {
    "avg_pool": rounds(_avg_pool),
    "l2_pool": rounds(_l2_pool),
    "max_pool": moves(_max_pool),
}
"""Rules of this family, by MIL name."""
