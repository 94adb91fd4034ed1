"""Weights of which neighbours share a scale: one function gives the integers and the scales of file and simulation.

A target's file holds `codes` and `scales` in the layout that its kernels read; the simulated reference holds
`values()`. Nothing else may decide how such a weight is rounded. One scale for a whole channel is a run as long as its
axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deploykit.contract.formats import PerGroup, TensorScheme


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """A weight as integers in runs that share a scale.

    Attributes:
        codes: whole numbers as float32, shape (outer, runs, elements of a run). Where the last run of an axis is
            shorter than the others, zeros fill it up.
        scales: float32, shape (outer, runs, 1), never 0; of either sign where the form says `furthest`.
        shape: the shape of the weight, (outer, inner, *taps).
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]

    def values(self) -> Tensor:
        """What the integers stand for: float32, in the weight's own shape."""
        outer, inner, *taps = self.shape
        return (self.codes * self.scales).reshape(outer, -1, *taps)[:, :inner]

    def matrix(self) -> Tensor:
        """The integers of a matrix without what fills runs up: int8, shape (outer, inner)."""
        return self.codes.to(torch.int8).flatten(1)[:, : self.shape[1]]


def in_groups(
    weight: Tensor, form: TensorScheme, *, float16_scales: bool = False, float16_weights: bool = False
) -> GroupedWeight:
    """Round a weight in runs along the axis that is summed over; the taps of a kernel share their channel's run.

    Args:
        weight: float32, shape (outer, inner, *taps).
        form: the form of the integers. Runs are as long as its `PerGroup` says, and else, or at 0, as long as the axis.
        float16_scales: scales are values of float16, and none is below its smallest normal number, which GPUs may
            flush to zero.
        float16_weights: the weight is float16 before, and is divided by its scale in it.
    """
    outer, inner, *taps = weight.shape
    size = (form.granularity.size if isinstance(form.granularity, PerGroup) else 0) or inner
    padded = weight.new_zeros(outer, -(-inner // size) * size, *taps)
    padded[:, :inner] = as_float16(weight) if float16_weights else weight
    runs = padded.reshape(outer, -1, size * math.prod(taps))
    scales = run_scales(runs, form, float16_scales=float16_scales, float16_weights=float16_weights)
    units = as_float16(runs / scales) if float16_weights else runs / scales
    return GroupedWeight(units.round_().clamp_(form.quant_min, form.quant_max), scales, tuple(weight.shape))


def run_scales(runs: Tensor, form: TensorScheme, *, float16_scales: bool, float16_weights: bool) -> Tensor:
    """The scale of each run; 1 where nothing in it can be told from zero.

    Args:
        runs: float32, shape (..., elements of a run).
        form, float16_scales, float16_weights: see `in_groups`.
    Returns:
        float32, shape (..., 1), never 0.
    """
    magnitudes = runs.abs()
    largest = magnitudes.amax(-1, keepdim=True)
    if form.furthest:
        scales = runs.gather(-1, magnitudes.argmax(-1, keepdim=True)) / form.quant_min
    else:
        scales = largest / form.quant_max
        scales = as_float16(scales) if float16_weights else scales
    if float16_scales:
        scales = as_float16(scales.abs().clamp(min=torch.finfo(torch.float16).tiny).copysign(scales))
    return torch.where((largest == 0) | (scales == 0), torch.ones_like(scales), scales)


def as_float16(value: Tensor) -> Tensor:
    """The nearest values of float16, as float32."""
    return value.half().float()
