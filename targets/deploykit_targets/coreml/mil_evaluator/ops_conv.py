"""MIL convolutions: `conv`, `conv_quantized`, `conv_transpose`, in 1, 2 and 3 dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.operation import Context, Op, ints, per_channel, rounds
from deploykit_targets.coreml.mil_evaluator.windows import pad_spatial, window_pads

_CONV: Final[dict[int, Callable[..., Any]]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE: Final[dict[int, Callable[..., Any]]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _conv(
    x: Tensor,
    weight: Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    dilations: Tensor,
    groups: int,
    bias: Tensor | None = None,
) -> Tensor:
    """x (n, C_in, *spatial), weight (C_out, C_in / groups, *kernel) -> (n, C_out, *spatial_out)."""
    stride, dilation = ints(strides), ints(dilations)
    pads = window_pads(pad_type, x.shape[2:], weight.shape[2:], stride, dilation, ints(pad))
    convolve = _CONV[x.ndim - 2]
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
        result: Tensor = convolve(x, weight, bias, stride, padding, dilation, groups)
    else:
        result = convolve(pad_spatial(x, pads), weight, bias, stride, 0, dilation, groups)
    return result


def _conv_quantized(
    x: Tensor,
    weight: Tensor,
    quantization_type: str,
    nbits: int,
    quant_scale: float | Tensor,
    quant_bias: float | Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    dilations: Tensor,
    groups: int,
    context: Context,
    bias: Tensor | None = None,
) -> Tensor:
    """A convolution with weight * quant_scale + quant_bias, scale and bias per tensor or per output channel.

    Raises:
        EvaluationError: `lut` weights, whose layout the op set does not define.
    """
    if quantization_type != "linear":
        raise context.fail(f"quantization_type={quantization_type!r} (nbits={nbits}) has no documented layout")
    scale, shift = (_per_output_channel(value, weight.ndim) for value in (quant_scale, quant_bias))
    dense = weight.to(torch.float32) * scale + shift
    addend = None if bias is None else bias.to(torch.float32)
    return _conv(x, dense, strides, pad_type, pad, dilations, groups, addend)


def _per_output_channel(value: float | Tensor, rank: int) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float32)
    return tensor if tensor.ndim == 0 else per_channel(tensor, rank, axis=0)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    dilations: Tensor,
    groups: int,
    bias: Tensor | None = None,
    output_shape: Tensor | None = None,
) -> Tensor:
    """x (n, C_in, *spatial), weight (C_in, C_out / groups, *kernel).

    The whole transposed convolution is computed, then cropped (or, where `output_shape` asks for more than it
    reaches, extended by zeros) before the bias is added.
    """
    stride, dilation = ints(strides), ints(dilations)
    full: Tensor = _TRANSPOSE[x.ndim - 2](x, weight, None, stride, 0, 0, groups, dilation)
    wanted = ints(output_shape)[2:] if output_shape is not None else None
    pads = _transpose_crops(pad_type, ints(pad), list(x.shape[2:]), list(full.shape[2:]), stride, wanted)
    result = pad_spatial(full, pads)
    return result if bias is None else result + per_channel(bias, result.ndim)


def _transpose_crops(
    pad_type: str, pad: list[int], sizes: list[int], full: list[int], strides: list[int], wanted: list[int] | None
) -> list[tuple[int, int]]:
    """Negative pads that crop the full result to the output size (positive: extend it)."""
    kind, crops = pad_type.lower(), []
    for i, (size, reach, stride) in enumerate(zip(sizes, full, strides, strict=True)):
        if kind == "custom":
            before, out = pad[2 * i], reach - pad[2 * i] - pad[2 * i + 1]
        elif kind == "valid":
            before, out = 0, reach
        else:
            out = wanted[i] if wanted is not None else size * stride
            surplus = max(0, reach - out)
            before = surplus // 2 if kind == "same" else surplus - surplus // 2
        out = wanted[i] if wanted is not None else out
        crops.append((-before, out - (reach - before)))
    return crops


OPS: Final[dict[str, Op]] = {
    "conv": rounds(_conv),
    "conv_quantized": rounds(_conv_quantized, context=True),
    "conv_transpose": rounds(_conv_transpose),
}
"""Rules of this family, by MIL name."""
