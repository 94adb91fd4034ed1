"""Biases of integer layers: corrected for the rounding of the weight, and in the int32 form that kernels add.

The correction is that of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
with observed means: rounding errors of a weight do not average away over inputs whose mean is not zero (behind a ReLU,
say), and the layer's output shifts by their product.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INT32_MAX = 2**31 - 1
_ROOM = 2.0**30  # half of int32: the other half is left to the sum of products


def corrected(bias: Tensor, weight_error: Tensor, input_mean: NDArray[np.float64]) -> Tensor:
    """A bias without the shift that the rounding of its weight causes.

    b - sum over c and k of error[o, c, k] x mean[c]; padding counts as if the input went on.

    Args:
        bias: float32, shape (channels,).
        weight_error: rounded minus float weight, float32, shape (channels, inputs / groups, *kernel).
        input_mean: of each input channel, shape (inputs,).
    Returns:
        float32, shape (channels,).
    """
    error = weight_error.double().flatten(2).sum(2) if weight_error.ndim > 2 else weight_error.double()
    groups = input_mean.size // error.shape[1]
    means = torch.from_numpy(input_mean).reshape(groups, 1, error.shape[1])
    shift = (error.reshape(groups, -1, error.shape[1]) * means).sum(2).reshape(-1)
    return (bias.detach().double() - shift).float()


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
