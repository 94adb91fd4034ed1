"""Padding of sliding windows, shared by convolutions and pools.

`same` follows the rule that coremltools infers shapes with: the output has ceil(size / stride) elements, and the
padding that this needs goes half before, the odd one after (`same_lower`: the odd one before).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

Pads = list[tuple[int, int]]


def window_pads(
    pad_type: str,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pad: Sequence[int],
) -> Pads:
    """Elements to add before and after each spatial axis.

    Args:
        pad_type: `valid`, `custom`, `same` or `same_lower`.
        sizes, kernel, strides, dilations: one entry per spatial axis.
        pad: before and after per axis, flat; read only for `custom`.
    Raises:
        ValueError: unknown `pad_type`.
    """
    kind = pad_type.lower()
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    if kind not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type!r}")
    totals = [
        max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    return [(t // 2, t - t // 2) if kind == "same" else (t - t // 2, t // 2) for t in totals]


def pad_spatial(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """`x` with constant padding on its last len(pads) axes; negative entries crop."""
    if not any(before or after for before, after in pads):
        return x
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, value=value)
