"""Biases of integer layers: corrected for the rounding of the weight, and in the int32 form that kernels add.

The correction is that of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
with observed means: rounding errors of a weight do not average away over inputs whose mean is not zero (behind a ReLU,
say), and the layer's output shifts by their product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from deploykit.capture.calls import bind
from deploykit_calibration.op_kinds import data_arguments, kind_of, shape_of, weight_argument

INT32_MAX = 2**31 - 1
_ROOM = 2.0**30  # half of int32: the other half is left to the sum of products


def corrected(bias: Tensor, weight_error: Tensor, input_mean: NDArray[np.float64], coverage: Tensor) -> Tensor:
    """A bias without the shift that the rounding of its weight causes.

    b - sum over c and k of error[o, c, k] x coverage[k] x mean[c].

    Args:
        bias: float32, shape (channels,).
        weight_error: rounded minus float weight, float32, shape (channels, inputs / groups, *kernel).
        input_mean: the mean of each input channel, shape (inputs,).
        coverage: see `tap_coverage`, shape (*kernel).
    Returns:
        float32, shape (channels,).
    """
    error = (weight_error.double() * coverage).reshape(*weight_error.shape[:2], -1).sum(2)
    groups = input_mean.size // error.shape[1]
    means = torch.from_numpy(input_mean).reshape(groups, 1, error.shape[1])
    shift = (error.reshape(groups, -1, error.shape[1]) * means).sum(2).reshape(-1)
    return (bias.detach().double() - shift).float()


def tap_coverage(op: Node) -> Tensor:
    """How often each tap of a kernel meets the input, and not the zeros around it: 0 to 1, shape (*kernel), float64.

    At the sizes of the captured graph; a single 1 for a linear layer, which has no taps.
    """
    kernel = shape_of(weight_argument(op))[2:]
    if kind_of(op) != "conv" or not kernel:
        return torch.ones((), dtype=torch.float64)
    arguments, rank = bind(op), len(kernel)
    sizes, results = (shape_of(tensor)[-rank:] for tensor in (data_arguments(op)[0], op))
    strides, dilations = (per_axis(arguments[name], rank) for name in ("stride", "dilation"))
    befores = padded_before(arguments["padding"], kernel, dilations)
    covered = torch.ones((), dtype=torch.float64)
    for size, result, taps, stride, dilation, before in zip(
        sizes, results, kernel, strides, dilations, befores, strict=True
    ):
        positions = torch.arange(result)[:, None] * stride + torch.arange(taps) * dilation - before
        met = ((positions >= 0) & (positions < size)).double().mean(0)
        covered = covered[..., None] * met
    return covered


def padded_before(padding: Any, kernel: Sequence[int], dilations: Sequence[int]) -> Sequence[int]:
    """Zeros in front of each axis; of an odd number that `same` needs, PyTorch puts the larger part behind."""
    if isinstance(padding, str):
        same = padding == "same"
        return [dilation * (taps - 1) // 2 * same for taps, dilation in zip(kernel, dilations, strict=True)]
    return per_axis(padding, len(kernel))


def per_axis(value: Any, rank: int) -> Sequence[int]:
    """An argument such as a stride, which may be one number for all axes, as one number for each."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def scale_floor(bias: Tensor, input_scale: float) -> Tensor:
    """Smallest weight scales with which the bias still fits into int32.

    Args:
        bias: float32, shape (channels,).
        input_scale: the scale of the layer's input, > 0.
    Returns:
        float32, shape (channels,).
    """
    return (bias.detach().double().abs() / (input_scale * _ROOM)).float()


def quantize_bias(bias: Tensor, input_scale: float, weight_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Round a bias to int32.

    Args:
        bias: float32, shape (channels,).
        input_scale: the scale of the layer's input.
        weight_scales: float32, shape (channels,) or (1,).
    Returns:
        int32 values and float32 scales, both shape (channels,); the error is at most half a scale.
    """
    scales = (weight_scales.double() * input_scale).float().expand(bias.shape).contiguous()
    values = torch.round(bias.detach().double() / scales.double())
    return values.clamp(-INT32_MAX, INT32_MAX).to(torch.int32), scales
