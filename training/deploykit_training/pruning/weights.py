"""Which single weights go: the smallest of a layer or of the model, or two of every four that follow each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.contract.errors import UsageError
from deploykit_calibration.patterns import matches
from deploykit_training.pruning.choose import Ratio
from deploykit_training.pruning.count import LAYERS


@torch.no_grad()
def smallest(
    model: nn.Module, ratio: Ratio, *, scope: str, exclude: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Masks that hold the weights of least magnitude at zero.

    Args:
        ratio: share of the weights of each layer (scope `layer`), or of all of them together (`global`).
    Returns:
        bool by layer, True where a weight stays; and why other layers keep all of theirs.
    Raises:
        UsageError: a pattern names no layer.
    """
    wanted, kept = _wanted(model, ratio, exclude)
    layers = {path: _weight(model, path).detach().abs() for path in wanted}
    if scope == "global":
        flat = torch.cat([each.flatten().cpu() for each in layers.values()])
        count = round(sum(wanted[path] * each.numel() for path, each in layers.items()))
        parts = _without(flat, count).split([each.numel() for each in layers.values()])
        return {p: k.view(each.shape) for (p, each), k in zip(layers.items(), parts, strict=True)}, kept
    return {
        path: _without(each.flatten().cpu(), round(wanted[path] * each.numel())).view(each.shape)
        for path, each in layers.items()
    }, kept


@torch.no_grad()
def two_of_four(model: nn.Module, exclude: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Masks with at most two weights of every four that follow each other along the input channels.

    This is what sparse tensor cores take: for each output (and each place of a kernel) four input channels have two
    weights. Layers whose input channels are no multiple of four keep all of theirs.

    Returns:
        bool by layer, True where a weight stays; and why other layers keep all of theirs.
    Raises:
        UsageError: a pattern names no layer.
    """
    wanted, kept = _wanted(model, 0.5, exclude)
    found = {}
    for path in wanted:
        layer: Any = model.get_submodule(path)
        axis = 0 if getattr(layer, "transposed", False) else 1
        weight = layer.weight.detach().abs().cpu().movedim(axis, -1)
        if weight.shape[-1] % 4:
            kept[path] = f"{weight.shape[-1]} input channels are no multiple of 4"
            continue
        fours = weight.reshape(-1, 4)
        keep = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.topk(2, dim=1).indices, True)
        found[path] = keep.view(weight.shape).movedim(-1, axis).contiguous()
    return found, kept


def _without(magnitude: Tensor, count: int) -> Tensor:
    """True save for the `count` smallest."""
    keep = torch.ones(magnitude.numel(), dtype=torch.bool)
    keep[torch.argsort(magnitude, stable=True)[:count]] = False
    return keep


def _wanted(model: nn.Module, ratio: Ratio, exclude: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    paths = {path for path, module in model.named_modules() if isinstance(module, LAYERS)}
    patterns = dict(ratio) if isinstance(ratio, Mapping) else {"*": float(ratio)}
    for pattern in (*patterns, *exclude):
        if not any(matches(pattern, path, path) for path in paths):
            raise UsageError(
                f"pattern {pattern!r} names no convolution or linear layer", hint=", ".join(sorted(paths)[:8])
            )
    wanted, kept = {}, dict(_inside(model))
    for path in sorted(paths):
        own = [value for pattern, value in patterns.items() if matches(pattern, path, path)]
        if any(matches(pattern, path, path) for pattern in exclude):
            kept[path] = "excluded"
        elif "weight" not in model.get_submodule(path)._parameters:
            kept[path] = "its weight is computed (a parametrization): remove that first"
        elif own:
            wanted[path] = min(own)
        else:
            kept[path] = "no ratio names it"
    return wanted, kept


def _inside(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            yield path, f"weights of {type(module).__name__} that no layer inside it has"


def _weight(model: nn.Module, path: str) -> Tensor:
    found: Tensor = model.get_submodule(path).weight  # type: ignore[assignment]
    return found
