"""Quantize stored weights: one scale for each output channel or group, from their largest magnitude, or a palette.

Min-max per channel is enough (MSE-optimal scales measured no better). Two things need care: channels that are all
zero, and channels so small that the int32 bias of the layer would not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor

from deploykit.contract.errors import ConversionError
from deploykit.contract.formats import UINT8_AFFINE, PerAxis, PerGroup
from deploykit.contract.scheme import Scheme
from deploykit_calibration.grouped import in_groups
from deploykit_calibration.palette import palettize
from deploykit_calibration.ranges import affine_qparams
from deploykit_calibration.run_time import arguments_of, round_rows

DTYPES = {name: getattr(torch, name) for name in ("uint8", "int8", "int16", "int32", "float8_e4m3fn")}


@dataclass(frozen=True, eq=False)
class WeightQuant:
    """Scales of one weight.

    Attributes:
        scales: float32, shape (channels,), or (1,) per tensor; > 0.
        zero_points: int64 zeros, same shape.
        axis: the axis of the channels; None is per tensor.
        quant_min, quant_max, dtype: the integers that are used, inclusive, and their type.
    """

    scales: Tensor
    zero_points: Tensor
    axis: int | None
    quant_min: int
    quant_max: int
    dtype: torch.dtype

    def quantize(self, weight: Tensor) -> Tensor:
        """The integers of a weight, by the same operator that an unfolded graph runs; of float8, its values."""
        ops = torch.ops.quantized_decomposed
        if self.dtype.is_floating_point:
            return self._in_units(weight).clamp(self.quant_min, self.quant_max).to(self.dtype).contiguous()
        limits = (self.quant_min, self.quant_max, self.dtype)
        if self.axis is None:
            result = ops.quantize_per_tensor.default(weight, float(self.scales[0]), 0, *limits)
        else:
            result = ops.quantize_per_channel.default(weight, self.scales, self.zero_points, self.axis, *limits)
        return result.contiguous()  # type: ignore[no-any-return]

    def rounded(self, weight: Tensor) -> Tensor:
        """What the integers of a weight stand for, in units of the weight."""
        return self.quantize(weight).float() * self._along(weight)

    def error(self, weight: Tensor) -> Tensor:
        """Rounded minus float, in units of the weight: what `rounded` gives, without a pass through the integers."""
        weight = weight.detach()
        if self.dtype.is_floating_point:
            return self.rounded(weight) - weight
        return self.rounded_in_float(weight).sub_(weight)

    def rounded_in_float(self, weight: Tensor) -> Tensor:
        """What `rounded` gives for integers, in four passes over floats; a zero may be negative."""
        scales = self._along(weight)
        return weight.detach().mul(1.0 / scales).round_().clamp_(self.quant_min, self.quant_max).mul_(scales)

    def _in_units(self, weight: Tensor) -> Tensor:
        return weight.detach() / self._along(weight)

    def _along(self, weight: Tensor) -> Tensor:
        """The scales, shaped to meet a weight."""
        shape = [1] * weight.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return self.scales.reshape(shape)


def weight_quant(
    weight: Tensor, axis: int | None, scheme: Scheme, *, floor: Tensor | None = None, name: str = "a weight"
) -> WeightQuant:
    """Choose the scales of a weight.

    Args:
        weight: float32, any shape.
        axis: the axis of the output channels; None, or a per-tensor scheme, gives one scale.
        floor: float32, shape (channels,), smallest scale allowed (see `bias.scale_floor`).
        name: the name of the weight, for errors.
    Returns:
        Scales that cover every value exactly, at least `floor`.
    Raises:
        CalibrationError: the weight holds NaN or infinity.
    """
    _check_form(scheme, name)
    granularity = scheme.weight.granularity
    per_axis = isinstance(granularity, PerAxis) and axis is not None
    if isinstance(granularity, PerAxis) and granularity.axis is not None:
        axis = granularity.axis
    quant_min, quant_max = scheme.weight_limits
    magnitude = _magnitude(weight, axis if per_axis else None)
    limits = {"quant_min": quant_min, "quant_max": quant_max}
    params = affine_qparams(-magnitude, magnitude, symmetric=True, what=name, float16=scheme.float16_scales, **limits)
    scales = torch.from_numpy(np.atleast_1d(params.scale).astype(np.float32))
    if floor is not None:
        limit = floor if per_axis else floor.max().reshape(1)
        # A channel of zeros may have any scale; the floor keeps its bias exact.
        dead = torch.from_numpy(np.atleast_1d(magnitude) == 0) & (limit > 0)
        scales = torch.where(dead, limit, torch.maximum(scales, limit))
    zeros = torch.zeros(scales.shape, dtype=torch.int64)
    dtype = DTYPES[scheme.weight.dtype]
    return WeightQuant(scales, zeros, axis if per_axis else None, quant_min, quant_max, dtype)


def rounded_weight(weight: Tensor, axis: int | None, scheme: Scheme, *, name: str = "a weight") -> Tensor:
    """The values that a weight stored in a scheme's form stands for: shape and dtype are its own.

    Args:
        weight: float32, any shape.
        axis: the axis of the output channels; None gives one scale.
        name: the name of the weight, for errors.
    Raises:
        CalibrationError: the weight holds NaN or infinity.
        ConversionError: there is no such form.
    """
    form = scheme.weight
    if form.is_palette:
        held = weight.detach().half() if scheme.float16_weights else weight.detach()
        palette, indices = palettize(held.numpy(), form.bits)
        return torch.from_numpy(palette[indices].reshape(weight.shape)).float()
    if form == UINT8_AFFINE:
        return round_rows(weight.detach(), *arguments_of(form))
    if isinstance(form.granularity, PerGroup) or form.dtype not in DTYPES:
        return _in_groups(weight.detach(), axis, scheme)
    return weight_quant(weight, axis, scheme, name=name).rounded(weight)


def _in_groups(weight: Tensor, axis: int | None, scheme: Scheme) -> Tensor:
    """One scale for each run along the axis that is summed over; one for the whole tensor without an axis."""
    if axis is None:
        return _in_groups(weight.reshape(1, -1), 0, scheme).reshape(weight.shape)
    half = {"float16_scales": scheme.float16_scales, "float16_weights": scheme.float16_weights}
    found = in_groups(weight.transpose(0, axis), scheme.weight, **half)
    return found.values().transpose(0, axis).contiguous()


def _check_form(scheme: Scheme, name: str) -> None:
    own = scheme.weight
    if own.dtype not in DTYPES or not own.symmetric or isinstance(own.granularity, PerGroup):
        form = f"{'symmetric' if own.symmetric else 'affine'} {own.dtype} {own.granularity}"
        known = f"symmetric {', '.join(DTYPES)} with one scale per tensor or per channel"
        raise ConversionError(
            f"scheme {scheme.name} wants {name} as {form}, which is not placed", hint=f"there is {known}"
        )


def _magnitude(weight: Tensor, axis: int | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    with torch.no_grad():
        if axis is None:
            largest = weight.detach().abs().max()
        else:
            largest = weight.detach().abs().transpose(0, axis).flatten(1).amax(1)
    return largest.double().cpu().numpy()
