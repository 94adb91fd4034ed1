"""MIL normalisations: batch, instance, layer, L2 and local response. Each is computed in float32 throughout."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.operation import Op, axes_of, per_channel, rounds


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta along axis 1, folded into one scale and one shift."""
    scale = torch.rsqrt(variance.double() + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    if beta is not None:
        shift = shift + beta
    return torch.addcmul(per_channel(shift.to(x.dtype), x.ndim), x, per_channel(scale.to(x.dtype), x.ndim))


def _normalise(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(population variance + epsilon) over `axes`."""
    if not axes:
        return torch.zeros_like(x)
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def _instance_norm(x: Tensor, epsilon: float, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    result = _normalise(x, list(range(2, x.ndim)), epsilon)
    if gamma is not None:
        result = result * per_channel(gamma, x.ndim)
    return result if beta is None else result + per_channel(beta, x.ndim)


def _layer_norm(
    x: Tensor,
    epsilon: float,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    """gamma and beta have the shape of x along `axes`, in the order of x."""
    dims = sorted(axes_of(axes, x.ndim))
    if dims and dims == list(range(dims[0], x.ndim)):
        return F.layer_norm(x, list(x.shape[dims[0] :]), gamma, beta, epsilon)
    result = _normalise(x, dims, epsilon)
    shape = [size if axis in dims else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def _l2_norm(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(sum of squares over the last three axes + epsilon)."""
    squares = (x * x).sum(dim=(-3, -2, -1), keepdim=True)
    return x / torch.sqrt(squares + epsilon)


def _local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """x / (k + alpha / size * sum of squares of `size` neighbouring channels) ** beta.

    An even window has its extra channel before the centre, as in PyTorch.
    """
    squares = (x * x).movedim(1, -1)
    window = F.pad(squares, (size // 2, (size - 1) // 2)).unfold(-1, size, 1).sum(-1)
    return x / torch.pow(k + alpha / size * window.movedim(-1, 1), beta)


OPS: Final[dict[str, Op]] = {
    "batch_norm": rounds(_batch_norm),
    "instance_norm": rounds(_instance_norm),
    "l2_norm": rounds(_l2_norm),
    "layer_norm": rounds(_layer_norm),
    "local_response_norm": rounds(_local_response_norm),
}
"""Rules of this family, by MIL name."""
