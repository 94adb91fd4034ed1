"""The int32 form of a bias: scale = input scale x weight scale, zero-point 0, as integer kernels add it."""

from __future__ import annotations

import torch
from torch import Tensor

INT32_MAX = 2**31 - 1
_ROOM = 2.0**30  # half of int32: the other half is left to the sum of products


def scale_floor(bias: Tensor, input_scale: float) -> Tensor:
    """Smallest weight scales with which the bias still fits into int32.

    Args:
        bias: float32, shape (channels,).
        input_scale: of the layer's input, > 0.
    Returns:
        float32, shape (channels,).
    """
    return (bias.detach().double().abs() / (input_scale * _ROOM)).float()


def quantize_bias(bias: Tensor, input_scale: float, weight_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Round a bias to int32.

    Args:
        bias: float32, shape (channels,).
        input_scale: of the layer's input.
        weight_scales: float32, shape (channels,) or (1,).
    Returns:
        int32 values and float32 scales, both shape (channels,); the error is at most half a scale.
    """
    scales = (weight_scales.double() * input_scale).float().expand(bias.shape).contiguous()
    values = torch.round(bias.detach().double() / scales.double())
    return values.clamp(-INT32_MAX, INT32_MAX).to(torch.int32), scales
