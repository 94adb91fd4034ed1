"""A copy of a model to try things on, made so that Torch-Pruning sees all of it, and the way back.

Two things it would not see: parameters that are frozen (autograd skips them), and buffers (it prunes parameters only).
In the copy the first are trainable, and floating-point buffers of the user's own modules are parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.contract.errors import UsageError

_OWN_BUFFERS = (nn.modules.batchnorm._NormBase,)
"""Layers whose buffers Torch-Pruning knows."""


@dataclass
class WorkingCopy:
    """A copy in eval mode on the CPU.

    Attributes:
        model: the copy.
        buffers: paths of the buffers that are parameters in it.
        shared: parameters that several modules hold, by each of their paths.
    """

    model: nn.Module
    buffers: tuple[str, ...]
    shared: dict[str, tuple[str, ...]]

    def tied(self, paths: Iterable[str]) -> str:
        """Why a group cannot lose channels: one of its layers shares its weight with another; empty where none does."""
        for path in paths:
            for name, places in self.shared.items():
                if name == path or name.rpartition(".")[0] == path:
                    return f"{name} is tied to {', '.join(p for p in places if p != name)}"
        return ""

    def restore(self) -> nn.Module:
        """Turn the buffers back into buffers; the copy is then a model like the original."""
        for path in self.buffers:
            owner, name = _holder(self.model, path)
            value = owner._parameters.pop(name)
            owner._buffers[name] = None if value is None else value.detach()
        return self.model


def working_copy(model: nn.Module) -> WorkingCopy:
    """Copy a model.

    Raises:
        UsageError: it cannot be copied.
    """
    shared = _shared(model)
    copied = plain_copy(model)
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return WorkingCopy(copied, tuple(_as_parameters(copied)), shared)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, without gradients that were accumulated.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        copied = copy.deepcopy(model, left_out(model)).cpu().eval()
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            hint="prune works on a copy until it has proved itself: detach() tensors that the model keeps",
        ) from error
    copied.zero_grad(set_to_none=True)
    return copied


@torch.no_grad()
def scrambled(model: nn.Module) -> nn.Module:
    """A plain copy with random weights of ordinary sizes, the same each time.

    Raises:
        UsageError: it cannot be copied.
    """
    copied, generator = plain_copy(model), torch.Generator().manual_seed(0)
    for name, parameter in copied.named_parameters():
        if parameter.is_floating_point():
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            vector = drawn * 0.2 + (1.0 if name.endswith("weight") else 0.0)
            parameter.copy_(vector if parameter.dim() < 2 else drawn * (len(drawn) / drawn.numel()) ** 0.5)
    for module in copied.modules():
        if isinstance(module, _OWN_BUFFERS) and isinstance(module.running_mean, Tensor):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.2)
    return copied


def left_out(model: nn.Module) -> dict[int, Any]:
    """What a Lightning module holds of its trainer is no part of it: in the copy there is none."""
    held = [module.__dict__.get(name) for module in model.modules() for name in ("_trainer", "_fabric")]
    return {id(each): None for each in held if each is not None}


def _as_parameters(model: nn.Module) -> Iterable[str]:
    for path, module in list(model.named_modules()):
        if isinstance(module, _OWN_BUFFERS):
            continue
        for name, value in list(module._buffers.items()):
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1:
                del module._buffers[name]
                module._parameters[name] = nn.Parameter(value.detach().clone())
                yield f"{path}.{name}" if path else name


def _shared(model: nn.Module) -> dict[str, tuple[str, ...]]:
    places: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(path)
    modules = {id(module): path for path, module in model.named_modules()}
    found = {}
    for paths in places.values():
        owners = {id(_holder(model, path)[0]) for path in paths}
        if len(owners) > 1 and owners <= set(modules):
            found.update(dict.fromkeys(paths, tuple(paths)))
    return found


def _holder(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return model.get_submodule(owner), name


@torch.no_grad()
def transplant(source: nn.Module, into: nn.Module) -> list[str]:
    """Give a model the smaller tensors of its pruned copy, and the sizes that go with them.

    Parameters stay the objects that they are (an optimizer without state that holds them goes on), on their device,
    frozen where they were; accumulated gradients are dropped where a shape changes.

    Returns:
        Paths of the modules that changed.
    """
    changed = []
    theirs = dict(source.named_modules())
    for path, module in into.named_modules():
        new = theirs[path]
        sizes = [name for name, own in _sizes(module).items() if _sizes(new).get(name, own) != own]
        for name in sizes:
            setattr(module, name, getattr(new, name))
        if _take(new._parameters, module._parameters) | _take(new._buffers, module._buffers) | bool(sizes):
            changed.append(path)
    return changed


def _sizes(module: nn.Module) -> dict[str, object]:
    """Numbers of channels; not `training`, in which the copy differs."""
    plain = {k: v for k, v in module.__dict__.items() if not k.startswith("_") and not isinstance(v, bool)}
    return {k: v for k, v in plain.items() if isinstance(v, int | tuple)}


def _take(theirs: dict[str, Tensor | None], own: dict[str, Tensor | None]) -> bool:
    """Tensors of other shapes, in place."""
    changed = False
    for name, tensor in own.items():
        new = theirs[name]
        if tensor is None or new is None or new.shape == tensor.shape:
            continue
        tensor.data = new.detach().to(tensor.device, tensor.dtype).contiguous()
        tensor.grad = None
        changed = True
    return changed
