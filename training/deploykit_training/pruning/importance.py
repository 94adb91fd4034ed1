"""What a channel is worth: the share of its readers' outputs that is lost without it.

For a layer that reads it: |W[:, c]|^2 E[x_c^2], the energy that the channel adds to that layer's outputs (as Wanda,
Sun et al. 2023, scores single weights), as a share of all its channels' energy. A channel that is always zero, or whose
readers have zero weights for it, is worth nothing, whatever the weights that make it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit_training.pruning.groups import Group, Member

Forward = Callable[[nn.Module], Any]


@torch.no_grad()
def channel_energy(model: nn.Module, forwards: Iterable[Forward], groups: Sequence[Group]) -> dict[str, Tensor]:
    """Measure every channel of the groups that can lose some.

    Args:
        model: a plain copy, in eval mode.
        forwards: each calls a model on one batch.
        groups: the groups of the model.
    Returns:
        By root: float64, shape (channels,), each channel's mean share of its readers' energy, 0 to 1.
    """
    readers = {m.path for g in groups if not g.refused for m in g.members if _reads(m)}
    squares: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(_watcher(path, squares), with_kwargs=True)
        for path in readers
    ]
    try:
        for forward in forwards:
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return {g.root: _of_group(model, g, squares) for g in groups if not g.refused}


def _reads(member: Member) -> bool:
    return member.role == "in" and member.kind in ("CONV", "LINEAR")


def _watcher(path: str, squares: dict[str, Tensor]) -> Any:
    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (*args, *kwargs.values())[0]
        axis = x.dim() - 1 if isinstance(module, nn.Linear) else _channel_axis(module, x)
        others = [i for i in range(x.dim()) if i != axis]
        found = x.double().square().mean(others) if others else x.double().square()
        squares[path] = squares.get(path, torch.zeros_like(found)) + found

    return watch


def _channel_axis(module: nn.Module, x: Tensor) -> int:
    """The last axis before the places of a convolution; a batch axis may be missing."""
    return x.dim() - 1 - len(module.kernel_size)  # type: ignore[arg-type]


def _of_group(model: nn.Module, group: Group, squares: dict[str, Tensor]) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    readers = [m for m in group.members if _reads(m) and m.path in squares]
    for member in readers:
        energy = _weight_energy(model.get_submodule(member.path)) * squares[member.path]
        own = torch.zeros_like(total)
        own.index_add_(0, torch.tensor(member.root), energy[torch.tensor(member.index)])
        total += own / own.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return total / max(len(readers), 1)


def _weight_energy(layer: Any) -> Tensor:
    """Squared norm of the weights that read each input channel, shape (input channels,)."""
    weight: Tensor = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return weight.square().sum(0)
    if layer.transposed:
        return weight.flatten(1).square().sum(1)
    found = weight.transpose(0, 1).flatten(1).square().sum(1)
    return found if layer.groups == 1 else found.repeat(layer.groups)
