"""Scales of activations that are trained beside the weights: LSQ, learned step size quantization.

A scale of the placed graph, which tensors that are moved, joined or pooled share, is one parameter: the logarithm of
its factor, 0 at the start, so that one learning rate serves scales of every size. Zero points stay, since a range grows
and shrinks about zero. Scales that a kernel has built in are not learned. What was learned is a range of each tensor,
which a recipe holds as `range:LOW:HIGH`.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020 (gradient and its factor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from deploykit.contract.errors import UsageError
from deploykit_calibration import simulate
from deploykit_calibration.ranges import range_method
from deploykit_training.straight_through import through

if TYPE_CHECKING:
    from deploykit.contract.scheme import FixedParams
    from deploykit_calibration.prepared import Prepared

Key = tuple[float, int, int]
"""Scale, and the lowest and highest multiple of it."""


class LearnedScales:
    """The scales of a placed graph as parameters.

    Args:
        prepared: what was placed.
        simulated: what the target computes of it.

    Attributes:
        tensors: for every scale that is learned, the nodes whose values it rounds.
        parameters: as many parameters, shape (): the natural logarithm of the factor of each scale.

    Raises:
        UsageError: the target sums in units of its scales, which then are no parameters of their own.
    """

    def __init__(self, prepared: Prepared, simulated: GraphModule) -> None:
        if any(node.target is simulate.requantize for node in simulated.graph.nodes):
            raise UsageError(
                f"scales cannot be learned for {prepared.request.target}: its sums are in units of their terms' scales",
                hint='scales="fixed" keeps those of the calibration',
            )
        built_in = {_built_in(prepared, params) for params in prepared.scheme.fixed_outputs.values()}
        self._symmetric = prepared.scheme.activation.symmetric
        self.tensors: dict[Key, list[str]] = {}
        for node in simulated.graph.nodes:
            key = key_of(node)
            if key is not None and key not in built_in:
                self.tensors.setdefault(key, []).append(node.name.removesuffix("_dq"))
        self.parameters = [nn.Parameter(torch.zeros(())) for _ in self.tensors]

    def values(self, device: torch.device) -> list[Tensor]:
        """The scales of the moment, float32, shape (), with gradients."""
        pairs = zip(self.tensors, self.parameters, strict=True)
        return [(key[0] * parameter.exp()).to(device) for key, parameter in pairs]

    def methods(self, known: Mapping[str, object]) -> dict[str, str]:
        """The learned range of every tensor of `known`, as a method of a recipe."""
        with torch.no_grad():
            scales = [float(value) for value in self.values(torch.device("cpu"))]
        found = {}
        for ((_, low, high), names), scale in zip(self.tensors.items(), scales, strict=True):
            limits = (-high * scale, high * scale) if self._symmetric else (low * scale, high * scale)
            found.update({name: range_method(*limits) for name in names if name in known})
        return found


def key_of(node: Node) -> Key | None:
    """The scale that a node of a simulated graph rounds with; None of other nodes."""
    if node.target is not simulate.fake_quantize:
        return None
    _, scale, low, high = node.args
    assert isinstance(scale, float) and isinstance(low, int) and isinstance(high, int)
    return scale, low, high


def _built_in(prepared: Prepared, params: FixedParams) -> Key:
    activation, zero = prepared.scheme.activation, params.zero_point
    kind = torch.float16 if prepared.scheme.float16_scales else torch.float32
    return float(torch.tensor(params.scale, dtype=kind)), activation.quant_min - zero, activation.quant_max - zero


def quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """`simulate.fake_quantize` with a learned scale: the same bits, and the gradients of LSQ for both.

    Args:
        x: float, any shape.
        scale: float32, shape (), > 0.
    """
    x = x.float()
    share = 1.0 / math.sqrt(x.numel() * max(high, -low))
    slowed = scale * share + (scale - scale * share).detach()
    steps = (x / slowed).clamp(low, high)
    surrogate = (steps + (steps.round() - steps).detach()) * slowed
    return through(surrogate, simulate.fake_quantize(x.detach(), float(scale.detach()), low, high))
