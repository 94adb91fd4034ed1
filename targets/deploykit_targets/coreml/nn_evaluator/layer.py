"""What a row of a layer table is.

A rule takes the parameters of a layer once, decodes its weights, and gives a function of the layer's input tensors
(float32, as everything in a neural network is), which returns a tensor or a tuple of them. Where an ML Program has the
same op, the rule calls the one of `mil_evaluator`, which is tested against independent references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.rules import RULES

Result = Tensor | Sequence[Tensor]
Function = Callable[..., Result]
Rule = Callable[[Any], Function]
LayerTable = Mapping[str, Rule]


class FormError(Exception):
    """A form of a layer without a rule; the network turns it into an error that names the layer."""


def mil(name: str) -> Callable[..., Any]:
    """The evaluation rule of MIL op `name`, by MIL's own parameter names."""
    return RULES[name].function


def integers(values: Sequence[int]) -> Tensor:
    """A list of a layer's parameters as the int32 vector that MIL rules take."""
    return torch.tensor([int(value) for value in values], dtype=torch.int32)


def whole(value: Tensor) -> Tensor:
    """Indices and sizes, which networks compute in float32, as int64."""
    return value.to(torch.int64)


def plain(function: Function) -> Rule:
    """A rule without parameters."""
    return lambda _: function
