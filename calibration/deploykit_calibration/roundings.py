"""What placement rounded a stored tensor to, as a rule that can be applied again when the tensor changes.

`Rewriter` writes integers and scales that follow from a weight or a bias. The node that stands for the rounded tensor
carries the rule in `meta[ROUNDING]`, by the names of the captured model's constants, so that training can round the
weights of the moment as placement would. A node without a rule is a literal. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deploykit.contract.formats import TensorScheme
from deploykit.contract.scheme import Scheme
from deploykit_calibration.bias import corrected, quantize_bias, scale_floor
from deploykit_calibration.weights import WeightQuant, rounded_weight, weight_quant

ROUNDING = "deploykit_rounding"
ValueOf = Callable[[str], Tensor]


@dataclass(frozen=True)
class WeightRounding:
    """A weight whose integers follow from its value.

    Attributes:
        weight: name of the constant.
        axis: the axis of the output channels; None for one scale.
        bias: name of the bias that must fit into int32 beside it; None where none must.
        input_scale: the scale of the layer's input; read where there is such a bias.
    """

    weight: str
    axis: int | None
    bias: str | None = None
    input_scale: float = 1.0

    def of(self, value: ValueOf, scheme: Scheme) -> WeightQuant:
        """The scales for the values of the moment, as `place` chooses them."""
        floor = scale_floor(value(self.bias), self.input_scale) if self.bias is not None else None
        return weight_quant(value(self.weight), self.axis, scheme, floor=floor, name=f"weight {self.weight}")


@dataclass(frozen=True)
class StoredRounding:
    """A weight that is stored narrow alone, and stands in the graph as the floats that it is rounded to.

    Attributes:
        weight: name of the constant.
        axis: the axis of the output channels; None for one scale.
        form: what it is rounded to.
    """

    weight: str
    axis: int | None
    form: TensorScheme

    def of(self, value: ValueOf, scheme: Scheme) -> Tensor:
        """The rounded values for those of the moment, as `place` chooses them."""
        own = replace(scheme, weight=self.form)
        return rounded_weight(value(self.weight), self.axis, own, name=f"weight {self.weight}")


@dataclass(frozen=True, eq=False)
class BiasRounding:
    """A bias that follows from its value and from how the layer's weight is rounded.

    Attributes:
        bias: name of the constant.
        weight: the rounding of the layer's weight.
        input_scale: the scale of the layer's input.
        is_integer: stored as int32; else as float, and only corrected.
        channels: axis of the output channels of the weight.
        input_mean, coverage: as `bias.corrected` takes them; None where the bias is not corrected.
    """

    bias: str
    weight: WeightRounding | StoredRounding
    input_scale: float
    is_integer: bool
    channels: int
    input_mean: NDArray[np.float64] | None = None
    coverage: Any = None

    def rounded(self, value: ValueOf, quant: WeightQuant | Tensor) -> Tensor:
        """What the layer adds, float32, in units of the bias.

        Args:
            quant: what the rule of the weight gave.
        """
        bias, weight = value(self.bias).detach(), value(self.weight.weight)
        if self.input_mean is not None:
            error = quant - weight if isinstance(quant, Tensor) else quant.error(weight)
            bias = corrected(bias, error.transpose(0, self.channels), self.input_mean, self.coverage)
        if not self.is_integer or isinstance(quant, Tensor):
            return bias
        integers, scales = quantize_bias(bias, self.input_scale, quant.scales)
        return integers.float() * scales
