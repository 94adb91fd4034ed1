"""A batch of a user's loader as the model's inputs and the task's targets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree


class Arguments(NamedTuple):
    """A call's arguments, positional and by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_TARGETS = ("labels", "label", "targets", "target", "y")


def split(batch: Any, model: nn.Module) -> tuple[Any, Any]:
    """(inputs, targets or None): of a tuple the last item is the targets, of a dict what is called `labels` or so.

    A tuple of as many items as forward requires has no targets.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in _TARGETS if name in batch), None)
        return {key: value for key, value in batch.items() if key != name}, None if name is None else batch[name]
    if isinstance(batch, tuple | list):
        items = tuple(batch)
        if len(items) > _required(model):
            return (items[0] if len(items) == 2 else items[:-1]), items[-1]
        return items, None
    return batch, None


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with one tensor, a tuple of arguments, a dict of them by name, or both (`Arguments`)."""
    if isinstance(inputs, Arguments):
        return model(*inputs.args, **inputs.kwargs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def moved(value: Any, device: torch.device | None) -> Any:
    """Every tensor of a batch on a device."""
    if device is None:
        return value
    return pytree.tree_map_only(torch.Tensor, lambda x: x.to(device, non_blocking=True), value)


def _required(model: nn.Module) -> int:
    """Number of arguments that forward cannot do without, at least one."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return max(sum(p.default is p.empty for p in positional), 1)
