"""Scales of activations that are trained beside the weights: LSQ, learned step size quantization.

A scale of the placed graph, which tensors that are moved, joined or pooled share, is one parameter: the logarithm of
its factor, 0 at the start, so that one learning rate serves scales of every size. Zero points stay, since a range grows
and shrinks about zero. Scales that a kernel has built in are not learned. What was learned is a range of each tensor,
which a recipe holds as `range:LOW:HIGH`.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020 (gradient and its factor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from deploykit_calibration import simulate
from deploykit_calibration.ranges import range_method
from deploykit_calibration.simulate import Key, key_of
from deploykit_training.straight_through import half_through

if TYPE_CHECKING:
    from deploykit.contract.scheme import FixedParams
    from deploykit_calibration.prepared import Prepared


class LearnedScales:
    """The scales of a placed graph as parameters.

    Args:
        prepared: what was placed.
        simulated: what the target computes of it.

    Attributes:
        tensors: for every scale that is learned, the nodes whose values it rounds.
        parameters: as many parameters, shape (): the natural logarithm of the factor of each scale.
    """

    def __init__(self, prepared: Prepared, simulated: GraphModule) -> None:
        built_in = {_built_in(prepared, params) for params in prepared.scheme.fixed_outputs.values()}
        self._symmetric, self._is_half = prepared.scheme.activation.symmetric, prepared.scheme.float16_scales
        self.tensors: dict[Key, list[str]] = {}
        for node in simulated.graph.nodes:
            key = key_of(node)
            if key is not None and key not in built_in:
                self.tensors.setdefault(key, []).append(node.name.removesuffix("_dq"))
        self.parameters = [nn.Parameter(torch.zeros(())) for _ in self.tensors]

    def values(self, device: torch.device) -> list[Tensor]:
        """The scales of the moment, float32, shape (), with gradients; values of float16 where the file's are."""
        pairs = zip(self.tensors, self.parameters, strict=True)
        found = (key[0] * parameter.exp() for key, parameter in pairs)
        return [(half_through(scale) if self._is_half else scale).to(device) for scale in found]

    def methods(self, known: Mapping[str, object]) -> dict[str, str]:
        """The learned range of every tensor of `known`, as a method of a recipe."""
        with torch.no_grad():
            scales = [float(value) for value in self.values(torch.device("cpu"))]
        found = {}
        for ((_, low, high), names), scale in zip(self.tensors.items(), scales, strict=True):
            limits = (-high * scale, high * scale) if self._symmetric else (low * scale, high * scale)
            found.update({name: range_method(*limits) for name in names if name in known})
        return found


def _built_in(prepared: Prepared, params: FixedParams) -> Key:
    activation, zero = prepared.scheme.activation, params.zero_point
    kind = torch.float16 if prepared.scheme.float16_scales else torch.float32
    return float(torch.tensor(params.scale, dtype=kind)), activation.quant_min - zero, activation.quant_max - zero


def factor(of: Tensor | None, by: Tensor | None, is_half: bool) -> Tensor | float:
    """`of / by` of learned scales, float32, shape (); see `simulate.Factor`."""
    found = of if by is None else (1.0 if of is None else of) / by
    if found is None:
        return 1.0
    return half_through(found) if is_half else found


def quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """`simulate.fake_quantize` with a learned scale: the same bits, and the gradients of LSQ for both.

    Args:
        x: float, any shape.
        scale: float32, shape (), > 0.
    """
    apply: Callable[..., Tensor] = _Quantize.apply
    return apply(x.float(), scale, None, low, high)


def requantize(x: Tensor, scale: Tensor | float, low: int, high: int, unit: Tensor | float) -> Tensor:
    """`simulate.requantize` where its scale, its unit or both are learned."""
    apply: Callable[..., Tensor] = _Quantize.apply
    return apply(x.float(), torch.as_tensor(scale, device=x.device), torch.as_tensor(unit), low, high)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, unit: Tensor | None, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.unit, ctx.limits = float(scale), None if unit is None else float(unit), (low, high)
        if ctx.unit is None:
            return simulate.fake_quantize(x, ctx.scale, low, high)
        return simulate.requantize(x, ctx.scale, low, high, ctx.unit)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ((x,), (low, high)), scale, gradient = (ctx.saved_tensors, ctx.limits), ctx.scale, gradients[0]
        unit = scale if ctx.unit is None else ctx.unit
        steps = x / scale
        through = gradient.where(steps == steps.clamp(low, high), 0.0)
        share = 1.0 / math.sqrt(x.numel() * max(high, -low))
        of_unit = (gradient * steps.round().clamp_(low, high)).sum() * share
        of_scale = (through * steps).sum() * (-share * unit / scale)
        if ctx.unit is None:
            return through, of_scale + of_unit, None, None, None
        return through * (unit / scale), of_scale, of_unit, None, None
