"""What placement rounded a stored tensor to, as a rule that can be applied again when the tensor changes.

`Rewriter` writes integers and scales that follow from a weight or a bias. The node that stands for the rounded tensor
carries the rule in `meta[ROUNDING]`, by the names of the captured model's constants, so that training can round the
weights of the moment as placement would. A node without a rule is a literal. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deploykit.contract.scheme import Scheme
from deploykit_calibration.bias import corrected, quantize_bias, scale_floor
from deploykit_calibration.weights import WeightQuant, weight_quant

ROUNDING = "deploykit_rounding"
ValueOf = Callable[[str], Tensor]


@dataclass(frozen=True)
class WeightRounding:
    """A weight whose integers follow from its value.

    Attributes:
        weight: name of the constant.
        axis: of the output channels; None for one scale.
        bias: name of the bias that must fit into int32 beside it; None where none must.
        input_scale: of the layer's input; read where there is such a bias.
        at_run_time: the layer rounds its input when it runs, and its weight is stored as floats that are rounded.
    """

    weight: str
    axis: int | None
    bias: str | None = None
    input_scale: float = 1.0
    at_run_time: bool = False

    def quant(self, value: ValueOf, scheme: Scheme) -> WeightQuant:
        """The scales for the values of the moment, as `place` chooses them."""
        floor = scale_floor(value(self.bias), self.input_scale) if self.bias is not None else None
        return weight_quant(value(self.weight), self.axis, scheme, floor=floor, name=f"weight {self.weight}")


@dataclass(frozen=True, eq=False)
class BiasRounding:
    """A bias that follows from its value and from how the layer's weight is rounded.

    Attributes:
        bias: name of the constant.
        weight: the rounding of the layer's weight.
        input_scale: of the layer's input.
        is_integer: stored as int32; else as float, and only corrected.
        channels: axis of the output channels of the weight.
        input_mean, coverage: as `bias.corrected` takes them; None where the bias is not corrected.
    """

    bias: str
    weight: WeightRounding
    input_scale: float
    is_integer: bool
    channels: int
    input_mean: NDArray[np.float64] | None = None
    coverage: Any = None

    def rounded(self, value: ValueOf, quant: WeightQuant) -> Tensor:
        """What the layer adds, float32, in units of the bias."""
        bias = value(self.bias).detach()
        if self.input_mean is not None:
            error = quant.error(value(self.weight.weight)).transpose(0, self.channels)
            bias = corrected(bias, error, self.input_mean, self.coverage)
        if not self.is_integer:
            return bias
        integers, scales = quantize_bias(bias, self.input_scale, quant.scales)
        return integers.float() * scales
