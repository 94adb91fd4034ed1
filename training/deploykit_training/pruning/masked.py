"""The reference of structured pruning: the large model, with the channels that shall go masked.

Every layer that makes such a channel gives zero for it, and every layer that reads it multiplies it by zero. Layers
that normalise over channels take their statistics over the others. A pruned model that computes anything else is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit_training.pruning.groups import Member, parts


@torch.no_grad()
def mask(model: nn.Module, members: Iterable[Member]) -> nn.Module:
    """Mask channels of a copy, in place.

    Args:
        model: a plain copy, in eval mode.
        members: what `Dependencies.members` gave for the channels; a layer may come twice.
    Returns:
        The same model.
    """
    for (path, kind, axis), roles in _by_layer(members).items():
        if kind == "PARAMETER":
            owner, name = parts(model, path)
            _zero(getattr(owner, name), axis, roles["both"])
        else:
            _mask_layer(model.get_submodule(path), kind, roles)
    return model


def _by_layer(members: Iterable[Member]) -> dict[tuple[str, str, int], dict[str, set[int]]]:
    found: dict[tuple[str, str, int], dict[str, set[int]]] = {}
    for each in members:
        roles = found.setdefault((each.path, each.kind, each.axis), {"in": set(), "out": set(), "both": set()})
        roles[each.role].update(each.index)
    return found


def _mask_layer(layer: Any, kind: str, roles: dict[str, set[int]]) -> None:
    made = roles["out"] | roles["both"]
    if kind in ("CONV", "DEPTHWISE_CONV"):
        transposed = bool(getattr(layer, "transposed", False))
        _zero(layer.weight, int(transposed and layer.groups == 1), made)
        _zero(layer.bias, 0, made)
        if layer.groups == 1:
            _zero(layer.weight, int(not transposed), roles["in"])
    elif kind == "LINEAR":
        _zero(layer.weight, 0, made)
        _zero(layer.bias, 0, made)
        _zero(layer.weight, 1, roles["in"])
    elif kind == "EMBED":
        _zero(layer.weight, 1, made)
    else:
        _mask_norm(layer, kind, made)


def _mask_norm(layer: Any, kind: str, gone: set[int]) -> None:
    for name in ("weight", "bias", "running_mean"):
        tensor = getattr(layer, name, None)
        if isinstance(tensor, Tensor):
            _zero(tensor, tensor.dim() - 1, gone)
    if kind in ("LN", "GN") and gone:
        size = layer.normalized_shape[-1] if kind == "LN" else layer.num_channels
        keep = torch.tensor(sorted(set(range(size)) - gone))
        name, restricted = ("layer_norm", _layer_norm) if kind == "LN" else ("group_norm", _group_norm)
        layer.forward = _with_function(layer.forward, name, partial(restricted, keep))


def _with_function(forward: Callable[..., Any], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward, whatever it does around it, with another function of PyTorch inside."""

    def run(*args: Any, **kwargs: Any) -> Any:
        had = getattr(F, name)
        setattr(F, name, function)
        try:
            return forward(*args, **kwargs)
        finally:
            setattr(F, name, had)

    return run


_LAYER_NORM, _GROUP_NORM = F.layer_norm, F.group_norm


def _layer_norm(
    keep: Tensor, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Statistics over the channels that stay, zero for the others."""
    out = torch.zeros_like(x)
    weight, bias = (None if each is None else each[..., keep] for each in (weight, bias))
    out[..., keep] = _LAYER_NORM(x[..., keep], [*shape[:-1], len(keep)], weight, bias, eps)
    return out


def _group_norm(
    keep: Tensor, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Statistics over the channels that stay, zero for the others."""
    out = torch.zeros_like(x)
    weight, bias = (None if each is None else each[keep] for each in (weight, bias))
    out[:, keep] = _GROUP_NORM(x[:, keep], groups, weight, bias, eps)
    return out


def _zero(tensor: Tensor | None, axis: int, index: set[int]) -> None:
    if tensor is not None and index:
        tensor.index_fill_(axis, torch.tensor(sorted(index), device=tensor.device), 0)
