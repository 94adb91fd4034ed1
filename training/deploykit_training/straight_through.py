"""Rounding whose value is exactly the simulation's, and whose gradient is that of a clamp (straight-through).

`quantized_decomposed` has no gradient, and `simulate.fake_quantize` a silent zero one. PyTorch's own fake-quantize has
one, and takes ten times as long as the simulation's four passes over a tensor.
Values are float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deploykit_calibration import run_time, simulate
from deploykit_calibration.run_time import round_rows
from deploykit_calibration.simulate import fake_float8, requantize, round_away, round_half
from deploykit_calibration.weights import WeightQuant


def fake_quantize(x: Tensor, scale: float, low: int, high: int) -> Tensor:
    """Round to multiples of `scale` from `low * scale` to `high * scale`; the gradient is 1 inside and 0 outside.

    Equal to `deploykit_calibration.simulate.fake_quantize`; `low <= 0 <= high`. Inside is what is rounded to one of its
    integers. It keeps what it rounds for the backward pass, and no mask: the layer in front often keeps that anyway.
    """
    apply: Callable[..., Tensor] = _FakeQuantize.apply
    return apply(x.float(), scale, low, high, None)


def requantize_through(x: Tensor, scale: float, low: int, high: int, unit: float) -> Tensor:
    """The same integers in multiples of `unit`; the gradient is `unit / scale` inside and 0 outside."""
    apply: Callable[..., Tensor] = _FakeQuantize.apply
    return apply(x.float(), scale, low, high, unit)


def away_through(x: Tensor, zero: int) -> Tensor:
    """Round to integers, ties away from `-zero`; the gradient passes as it is."""
    x = x.float()
    return through(x, round_away(x.detach(), zero))


def float8_through(x: Tensor, scale: float, limit: int) -> Tensor:
    """Round to E4M3 multiples of `scale`; the gradient is 1 up to `limit` of them and 0 beyond."""
    x = x.float()
    return through(x.clamp(-limit * scale, limit * scale), fake_float8(x.detach(), scale, limit))


def rows_through(x: Tensor, *rounding: Any) -> Tensor:
    """Round between the extremes of the moment, see `round_rows`; the gradient passes as it is."""
    x = x.float()
    return through(x, round_rows(x.detach(), *rounding))


def steps_through(*arguments: Any) -> tuple[Tensor, ...]:
    """A recurrent layer whose steps round what they read, see `recurrent_of_rounded`; the gradient passes these."""
    return run_time.recurrent_of_rounded(*arguments, rows=rows_through)


def half_through(x: Tensor) -> Tensor:
    """Round to float16; the gradient passes as it is, in float32."""
    x = x.float()
    return through(x, round_half(x.detach()))


def quantize_weight(weight: Tensor, quant: WeightQuant) -> Tensor:
    """What the integers of a weight stand for; the gradient passes, since scales cover every value."""
    if quant.dtype.is_floating_point:
        return through(weight, quant.rounded(weight.detach()))
    return through(weight, quant.rounded_in_float(weight))


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of `x`; bit for bit, which `x + (rounded - x)` is not."""
    apply: Callable[..., Tensor] = _Through.apply
    return apply(x, rounded)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int, unit: float | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits, ctx.factor = ((low - 0.5) * scale, (high + 0.5) * scale), 1.0 if unit is None else unit / scale
        if unit is None:
            return simulate.fake_quantize(x, scale, low, high)
        return requantize(x, scale, low, high, unit)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inside = torch.ops.aten.hardtanh_backward(gradients[0], *ctx.saved_tensors, *ctx.limits)
        return inside if ctx.factor == 1.0 else inside * ctx.factor, None, None, None, None


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        del ctx, x
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx
        return gradients[0], None


TRAINED_AS: dict[Callable[..., Any], Callable[..., Any]] = {
    simulate.fake_quantize: fake_quantize,
    simulate.requantize: requantize_through,
    simulate.round_away: away_through,
    simulate.fake_float8: float8_through,
    run_time.round_rows: rows_through,
    run_time.recurrent_of_rounded: steps_through,
    simulate.round_half: half_through,
}
"""What a simulation computes with -> the same with a gradient."""
