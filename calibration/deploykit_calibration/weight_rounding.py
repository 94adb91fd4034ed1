"""Round a weight so that what a layer computes changes least, from samples of what it reads.

The publication's way (Frantar et al., GPTQ, 2022): inputs are rounded one after the other, those that vary most first,
and what each rounding does to the output is taken out of the inputs that are still to come. Before that the weight is
moved towards what gives the float output from inputs that are wrong already, because layers before are rounded (after
Li et al., GPTAQ, 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deploykit.contract.scheme import Scheme
from deploykit_calibration.weight_grid import WeightGrid, grid_of

DAMPING = 0.05
"""Of the mean variance of an input, added to each: few samples say little of directions in which nothing varies."""
_REPAIR_DAMPING = 0.1
_BLOCK = 32  # inputs whose corrections wait for one product


@dataclass(frozen=True, eq=False)
class Rounded:
    """A rounded weight.

    Attributes:
        weight: float32, shape (groups, outputs, inputs), which the target's quantiser leaves as it is.
        shift: what it adds to the mean of the outputs, float64, shape (groups x outputs,).
    """

    weight: Tensor
    shift: Tensor


def round_for_inputs(
    weight: Tensor, scheme: Scheme, wanted: Tensor, seen: Tensor, *, centred: bool, taps: int = 1
) -> Rounded:
    """Round the matrices of a layer.

    Args:
        weight: float32, shape (groups, outputs, inputs).
        scheme: the scheme of the target, with the form of this layer's weight.
        wanted: what the layer reads in the float graph, float32, shape (groups, rows, inputs).
        seen: what it reads behind layers that are rounded already, row by row.
        taps: neighbouring inputs that are one input channel.
        centred: a shift of the outputs' mean does not count: the layer has a bias that takes it out.
    """
    means = wanted.mean(1), seen.mean(1)
    if centred:
        wanted, seen = wanted - means[0][:, None], seen - means[1][:, None]
    products = seen.transpose(1, 2) @ seen / seen.shape[1]
    if not bool(products.isfinite().all()):  # squares beyond float32: nothing can be weighed
        return Rounded(weight, torch.zeros(weight.shape[0] * weight.shape[1], dtype=torch.float64))
    start = weight if wanted is seen else _repaired(weight, wanted, seen, products)
    importance = products.diagonal(dim1=1, dim2=2)
    made = round_matrices(grid_of(start, scheme, importance, taps=taps), products)
    before, after = (w.double() @ mean.double()[:, :, None] for w, mean in zip((weight, made), means, strict=True))
    return Rounded(made, (after - before).flatten())


def _repaired(weight: Tensor, wanted: Tensor, seen: Tensor, products: Tensor) -> Tensor:
    """The weight that gives most of the float output from what is seen: W + W (x - x')x' / (x'x' + damping)."""
    lost = weight @ ((wanted - seen).transpose(1, 2) @ seen / seen.shape[1])
    factor = torch.linalg.cholesky(_damped(products, _REPAIR_DAMPING))
    return weight + torch.cholesky_solve(lost.transpose(1, 2), factor).transpose(1, 2)


def round_matrices(grid: WeightGrid, products: Tensor) -> Tensor:
    """Round to a grid, with each error made good by what is rounded later.

    Args:
        products: mean products (or covariances) of the inputs, float32, shape (groups, inputs, inputs).
    Returns:
        float32, shape (groups, outputs, inputs), on the grid but for the anchors, which stay.
    """
    order = products.diagonal(dim1=1, dim2=2).sum(0).argsort(descending=True)
    factor = _factor(products[:, order][:, :, order])
    turned = [each[..., order].transpose(1, 2).contiguous() for each in (grid.weight, grid.steps, grid.anchors)]
    left, made = turned[0].clone(), torch.empty_like(turned[0])
    for begin in range(0, len(order), _BLOCK):
        end = min(begin + _BLOCK, len(order))
        errors = _round_block(left, made, turned, (grid.lowest, grid.highest), factor, range(begin, end))
        left[:, end:] -= factor[:, begin:end, end:].transpose(1, 2) @ errors
    return made[:, order.argsort()].transpose(1, 2)


def _round_block(
    left: Tensor, made: Tensor, turned: Sequence[Tensor], limits: tuple[int, int], factor: Tensor, places: range
) -> Tensor:
    """Round neighbouring inputs, each after the errors of those before it were made good; these errors."""
    weight, steps, anchors = turned
    errors = torch.empty_like(left[:, places.start : places.stop])
    for place in places:
        value = left[:, place]
        rounded = (value / steps[:, place]).round_().clamp_(*limits).mul_(steps[:, place])
        made[:, place] = torch.where(anchors[:, place], weight[:, place], rounded)
        error = errors[:, place - places.start] = (value - made[:, place]) / factor[:, place, place, None]
        rest = slice(place + 1, places.stop)
        left[:, rest] -= factor[:, place, rest, None] * error[:, None]
    return errors


def _factor(products: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, from one factorisation: of the matrix with its order turned round."""
    upper = torch.linalg.cholesky(_damped(products, DAMPING).flip(1, 2)).flip(1, 2)
    inverse: Tensor = torch.linalg.solve_triangular(upper, torch.eye(upper.shape[-1]).expand_as(upper), upper=True)
    return inverse


def _damped(products: Tensor, damping: float) -> Tensor:
    mean = products.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    return products + torch.eye(products.shape[-1]) * (damping * mean)[:, None, None]
