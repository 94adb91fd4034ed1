"""The grid that a target's quantiser rounds a weight to, seen from the weight: what can be stored, element by element.

A quantiser takes its scale from the largest magnitude of a tensor, a channel, or a block of the axis that is summed
over. Whatever else is moved on the grid, that element stays (`anchors`) and no code is further from zero than its own,
so the quantiser that comes later finds the same scale, and rounds nothing again. A finer grid is had by making the
largest elements smaller beforehand (`clipped`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deploykit.contract.formats import PerGroup, PerTensor
from deploykit_calibration.grouped import run_scales
from deploykit_calibration.ranges import affine_qparams

if TYPE_CHECKING:
    from deploykit.contract.scheme import Scheme

_FRACTIONS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Of the largest magnitude, as bounds that are tried."""


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """The grid of the matrices of one layer; all tensors are of their shape (groups, outputs, inputs).

    Attributes:
        weight: float32, what is rounded.
        steps: the distance of two values, of either sign, never 0.
        lowest, highest: the outermost multiples of a step.
        anchors: True for the element that the scale comes from.
    """

    weight: Tensor
    steps: Tensor
    lowest: int
    highest: int
    anchors: Tensor

    def nearest(self) -> Tensor:
        """Each element rounded by itself, as the target's own quantiser does."""
        codes = (self.weight / self.steps).round().clamp(self.lowest, self.highest)
        return codes * self.steps


def grid_of(matrices: Tensor, scheme: Scheme, importance: Tensor | None = None, *, taps: int = 1) -> WeightGrid:
    """The grid of a weight in a scheme.

    Args:
        matrices: float32, shape (groups, outputs, inputs).
        scheme: says the form of weights; one scale for each output where it says `PerAxis`.
        importance: the importance of errors in each input, shape (groups, inputs); given, large elements are made
            smaller where that loses less than the finer grid gains.
        taps: neighbouring inputs that are one input channel.
    """
    furthest = scheme.weight.furthest
    lowest, highest = scheme.weight_limits
    lowest = lowest if furthest else -highest
    rows, shape = _sharing(matrices, scheme, taps)
    if importance is not None:
        weights, _ = _sharing(importance[:, None].expand_as(matrices), scheme, taps)
        rows = clipped(rows, weights, lowest if furthest else highest, lowest, highest)
    steps = _steps(rows, scheme, highest)
    anchors = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.abs().argmax(1, keepdim=True), value=True)
    inputs = matrices.shape[2]
    weight, steps, anchors = (each.expand_as(rows).reshape(shape)[..., :inputs] for each in (rows, steps, anchors))
    return WeightGrid(weight, steps, lowest, highest, anchors)


def _steps(rows: Tensor, scheme: Scheme, highest: int) -> Tensor:
    """Scales of rows as the quantiser that comes later takes them, never 0."""
    form = scheme.weight
    if form.furthest or isinstance(form.granularity, PerGroup):
        half = {"float16_scales": scheme.float16_scales, "float16_weights": scheme.float16_weights}
        return run_scales(rows, form, **half)
    size, half_scales = rows.abs().amax(1, keepdim=True).double().numpy(), scheme.float16_scales
    params = affine_qparams(-size, size, quant_min=-highest, quant_max=highest, symmetric=True, float16=half_scales)
    return torch.from_numpy(np.where(size == 0, 1.0, params.scale).astype(np.float32))


def clipped(rows: Tensor, importance: Tensor, furthest: int, lowest: int, highest: int) -> Tensor:
    """Rows with their largest elements made smaller, where that is least error in all.

    Args:
        rows, importance: shape (scales, elements).
        furthest: the code of the largest magnitude.
    """
    top = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    best, fraction = _loss(rows, importance, top / furthest, lowest, highest), torch.ones_like(top)
    for candidate in _FRACTIONS:
        loss = _loss(rows, importance, candidate * top / furthest, lowest, highest)
        fraction = torch.where(loss < best, candidate, fraction)
        best = torch.minimum(best, loss)
    bound = top.abs() * fraction
    return rows.clamp(-bound, bound)


def _loss(rows: Tensor, importance: Tensor, steps: Tensor, lowest: int, highest: int) -> Tensor:
    steps = torch.where(steps == 0, 1.0, steps)
    errors = (rows / steps).round_().clamp_(lowest, highest).mul_(steps).sub_(rows)
    return (errors.square_() * importance).sum(1, keepdim=True)


def _sharing(matrices: Tensor, scheme: Scheme, taps: int) -> tuple[Tensor, tuple[int, ...]]:
    """Elements that share a scale as rows (scales, elements), and the shape of the (padded) matrices."""
    granularity = scheme.weight.granularity
    if isinstance(granularity, PerGroup) and granularity.size:
        size = granularity.size * taps
        padded = torch.nn.functional.pad(matrices, [0, -matrices.shape[2] % size])
        return padded.reshape(-1, size), tuple(padded.shape)
    whole = isinstance(granularity, PerTensor)
    return matrices.reshape(1, -1) if whole else matrices.flatten(0, 1), tuple(matrices.shape)
