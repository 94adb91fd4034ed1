"""Layers with weights, and the windows, norms and products beside them."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.nn_evaluator.layer import FormError, Function, LayerTable, integers, mil
from deploykit_targets.coreml.nn_evaluator.weights import tensor


def _padding(p: Any, name: str) -> tuple[str, list[int]]:
    """(MIL pad type, amounts before and after each axis)."""
    kind = p.WhichOneof(name)
    if kind == "same":
        return "same_lower" if p.same.asymmetryMode else "same", [0, 0, 0, 0]
    if kind == "includeLastPixel":
        top, left = list(p.includeLastPixel.paddingAmounts) or [0, 0]
        return "custom", [top, top, left, left]
    edges = p.valid.paddingAmounts.borderAmounts
    return "custom", [side for edge in edges for side in (edge.startEdgeSize, edge.endEdgeSize)] or [0, 0, 0, 0]


def _convolution(p: Any) -> Function:
    kernel, groups = tuple(p.kernelSize) or (3, 3), p.nGroups or 1
    pad_type, pad = _padding(p, "ConvolutionPaddingType")
    shared: dict[str, Any] = {
        "strides": integers(p.stride or (1, 1)),
        "dilations": integers(p.dilationFactor or (1, 1)),
        "pad_type": pad_type,
        "pad": integers(pad),
        "groups": groups,
        "bias": tensor(p.bias, (p.outputChannels,)) if p.hasBias else None,
    }
    if not p.isDeconvolution:
        weight = tensor(p.weights, (p.outputChannels, p.kernelChannels, *kernel))
        return lambda x: mil("conv")(x=x, weight=weight, **shared)
    weight = tensor(p.weights, (p.kernelChannels, p.outputChannels // groups, *kernel), axis=1)

    def transposed(x: Tensor) -> Tensor:
        shape = integers((x.shape[0], p.outputChannels, *p.outputShape)) if p.outputShape else None
        result: Tensor = mil("conv_transpose")(x=x, weight=weight, output_shape=shape, **shared)
        return result

    return transposed


def _pooling(p: Any) -> Function:
    name = ("max_pool", "avg_pool", "l2_pool")[p.type]
    if p.globalPooling:
        axes = {"axes": integers((-2, -1)), "keep_dims": True}
        reduction = ("reduce_max", "reduce_mean", "reduce_l2_norm")[p.type]
        return lambda x: mil(reduction)(x=x, **axes)
    pad_type, pad = _padding(p, "PoolingPaddingType")
    settings: dict[str, Any] = {
        "kernel_sizes": integers(p.kernelSize or (3, 3)),
        "strides": integers(p.stride or (1, 1)),
        "pad_type": pad_type,
        "pad": integers(pad),
        "ceil_mode": p.WhichOneof("PoolingPaddingType") == "includeLastPixel",
    }
    if name == "avg_pool":
        settings["exclude_padding_from_average"] = p.avgPoolExcludePadding
    return lambda x: mil(name)(x=x, **settings)


def _inner_product(p: Any) -> Function:
    if p.int8DynamicQuantize:
        raise FormError("activations are quantized at run time, with parameters that no document gives")
    weight = tensor(p.weights, (p.outputChannels, p.inputChannels))
    bias = tensor(p.bias, (p.outputChannels,)) if p.hasBias else None
    return lambda x: F.linear(x, weight, bias)


def _batched_matmul(p: Any) -> Function:
    if p.int8DynamicQuantize:
        raise FormError("activations are quantized at run time, with parameters that no document gives")
    if not p.weightMatrixFirstDimension:
        return lambda x, y: mil("matmul")(x=x, y=y, transpose_x=p.transposeA, transpose_y=p.transposeB)
    weight = tensor(p.weights, (p.weightMatrixSecondDimension, p.weightMatrixFirstDimension))
    bias = tensor(p.bias, (p.weightMatrixSecondDimension,)) if p.hasBias else None
    return lambda x: F.linear(x, weight, bias)


def _embedding(p: Any) -> Function:
    weight = tensor(p.weights, (p.embeddingSize, p.vocabSize)).T.contiguous()
    bias = tensor(p.bias, (p.embeddingSize,)) if p.hasBias else torch.zeros(())

    def looked_up(x: Tensor) -> Tensor:
        index = x.to(torch.int64).squeeze(-1)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < p.vocabSize:
            raise ValueError(f"an index is outside of [0, {p.vocabSize})")
        return F.embedding(index, weight) + bias

    return looked_up


def _batch_norm(p: Any) -> Function:
    gamma, beta = (tensor(part, (p.channels,)) for part in (p.gamma, p.beta))
    epsilon = p.epsilon or 1e-5
    if p.computeMeanVar:
        if not p.instanceNormalization:
            raise FormError("statistics over a batch at run time are for training")
        return lambda x: mil("instance_norm")(x=x, gamma=gamma, beta=beta, epsilon=epsilon)
    mean, variance = (tensor(part, (p.channels,)) for part in (p.mean, p.variance))
    axis = {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta, "epsilon": epsilon}
    return lambda x: mil("batch_norm")(x=x, **axis)


def _mean_variance(p: Any) -> Function:
    axes = (-3, -2, -1) if p.acrossChannels else (-2, -1)
    epsilon = p.epsilon or 1e-5

    def normalised(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + epsilon) if p.normalizeVariance else x - mean

    return normalised


def _layer_norm(p: Any) -> Function:
    shape = tuple(p.normalizedShape)
    gamma, beta = tensor(p.gamma, shape), tensor(p.beta, shape)
    return lambda x: F.layer_norm(x, shape, gamma, beta, p.eps or 1e-5)


def _channels(values: Tensor) -> Tensor:
    """Parameters of shape (1,), (C,), (1, H, W) or (C, H, W) against (..., C, H, W)."""
    return values.reshape(-1, 1, 1) if values.ndim == 1 and values.numel() > 1 else values


def _scale(p: Any) -> Function:
    scale = _channels(tensor(p.scale, tuple(p.shapeScale)))
    bias = _channels(tensor(p.bias, tuple(p.shapeBias))) if p.hasBias else torch.zeros(())
    return lambda x: x * scale + bias


def _bias(p: Any) -> Function:
    bias = _channels(tensor(p.bias, tuple(p.shape)))
    return lambda x: x + bias


def _constant(p: Any) -> Function:
    value = tensor(p.data, tuple(p.shape))
    return lambda: value


def _upsample(p: Any) -> Function:
    height, width = p.fractionalScalingFactor or p.scalingFactor or (1, 1)
    factors = {"scale_factor_height": height, "scale_factor_width": width}
    if p.mode == p.NN:
        return lambda x: mil("upsample_nearest_neighbor")(x=x, **factors)
    centred = p.linearUpsampleMode == p.ALIGN_CORNERS_FALSE
    corners = p.linearUpsampleMode == p.ALIGN_CORNERS_TRUE
    return lambda x: mil("upsample_bilinear")(x=x, align_corners=corners, half_pixel_centers=centred, **factors)


_GRIDS = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS")


def _resize_bilinear(p: Any) -> Function:
    height, width = p.targetSize
    mode = _GRIDS[p.mode.samplingMethod]
    return lambda x: mil("resize_bilinear")(x=x, target_size_height=height, target_size_width=width, sampling_mode=mode)


def _pad(p: Any) -> Function:
    kind = p.WhichOneof("PaddingType") or "constant"
    mode = {"constant": "constant", "reflection": "reflect", "replication": "replicate"}[kind]
    edges = p.paddingAmounts.borderAmounts
    amounts = integers([side for edge in edges for side in (edge.startEdgeSize, edge.endEdgeSize)] or (0, 0, 0, 0))
    return lambda x: mil("pad")(x=x, pad=amounts, mode=mode, constant_val=p.constant.value)


def _local_response(p: Any) -> Function:
    return lambda x: mil("local_response_norm")(
        x=x, size=p.localSize or 5, alpha=p.alpha or 1.0, beta=p.beta or 0.5, k=p.k or 1.0
    )


OPS: Final[LayerTable] = {
    "batchedMatmul": _batched_matmul,
    "batchnorm": _batch_norm,
    "bias": _bias,
    "convolution": _convolution,
    "embeddingND": _embedding,
    "innerProduct": _inner_product,
    "l2normalize": lambda p: lambda x: mil("l2_norm")(x=x, epsilon=p.epsilon or 1e-6),
    "layerNormalization": _layer_norm,
    "loadConstantND": _constant,
    "lrn": _local_response,
    "mvn": _mean_variance,
    "padding": _pad,
    "pooling": _pooling,
    "resizeBilinear": _resize_bilinear,
    "scale": _scale,
    "softmax": lambda _: lambda x: torch.softmax(x, -3),
    "softmaxND": lambda p: lambda x: torch.softmax(x, p.axis),
    "upsample": _upsample,
}
"""Rules of this family, by the name of the layer's parameters."""
