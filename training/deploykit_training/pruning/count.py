"""What a model has before and after: parameters, zeros and multiply-accumulates of every module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from deploykit_calibration.products import mac_count
from deploykit_training.pruning.report import ModulePruning

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
"""What is counted as weights: convolutions and linear layers."""


def macs_of(captured: CapturedModel) -> dict[str, int]:
    """Multiply-accumulates by module path, of every operator that the captured graph has."""
    found: dict[str, int] = {}
    for node in captured.graph_module.graph.nodes:
        count = mac_count(node)
        if count and node.name in captured.origins:
            path = captured.origins[node.name].module_path
            found[path] = found.get(path, 0) + count
    return found


def sizes_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(parameters, output channels) by module path."""
    return {path: (_own(module), _channels(module)) for path, module in model.named_modules()}


def compared(
    model: nn.Module, before: Mapping[str, tuple[int, int]], macs: tuple[Mapping[str, int], Mapping[str, int]]
) -> tuple[ModulePruning, ...]:
    """One row for every module that has parameters or multiplies."""
    rows = []
    for path, module in model.named_modules():
        size, channels = before[path]
        counts = macs[0].get(path, 0), macs[1].get(path, 0)
        if size or any(counts):
            own, kind = _own(module), type(module).__name__
            sizes = size, own, own - _zeros(module)
            rows.append(ModulePruning(path, kind, *sizes, *counts, channels, _channels(module)))
    return tuple(rows)


@torch.no_grad()
def nonzero_weights(model: nn.Module) -> tuple[int, int]:
    """(elements, elements that are not zero) of the weights of convolutions and linear layers."""
    weights = [m.weight for m in model.modules() if isinstance(m, LAYERS)]
    return sum(w.numel() for w in weights), sum(int((w != 0).sum()) for w in weights)


def _zeros(module: nn.Module) -> int:
    weight = module._parameters.get("weight") if isinstance(module, LAYERS) else None
    return 0 if weight is None else int((weight == 0).sum())


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module._parameters.values() if p is not None)


def _channels(module: nn.Module) -> int:
    if not isinstance(module, LAYERS):
        return 0
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels
