"""Zeros that stay zero while a model trains, without a key in its `state_dict` and without another parameter.

A mask hangs on its layer as a hook. The gradient of a masked weight is zero, so optimizers leave it alone; whatever
changed it anyway (momentum from before, a loaded state) is set to zero before the layer is used or saved. Copies,
pickles and DistributedDataParallel carry the hook along. `finish` takes it away; the zeros stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class WeightMask:
    """A layer's hook: before its forward and its `state_dict`.

    Args:
        keep: bool, shape of the weight: False where it is held at zero.
    """

    def __init__(self, keep: Tensor) -> None:
        self.keep = keep
        self._seen: tuple[int, int] | None = None
        self._handle: Any = None
        self._hooked = 0

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles begin anew: what was seen is of another parameter."""
        return {"keep": self.keep, "_seen": None, "_handle": None, "_hooked": 0}

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Before forward: nothing is written where nothing changed, as gradients may wait for this very weight."""
        weight = module._parameters.get("weight")
        if weight is None or torch.compiler.is_compiling() or weight.is_inference():
            return
        self._watch_gradient(weight)
        if not torch.is_grad_enabled() or self._seen != (id(weight), weight._version):
            self._zero(weight)

    def before_state_dict(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        """Before the weight is saved."""
        self.apply(module)

    def apply(self, module: nn.Module) -> None:
        """Set the masked weights to zero."""
        weight = module._parameters.get("weight")
        if weight is not None and not torch.compiler.is_compiling() and not weight.is_inference():
            self._zero(weight)

    def release(self) -> None:
        """Leave the gradient alone."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._hooked = None, 0

    def _zero(self, weight: Tensor) -> None:
        with torch.no_grad():
            keep = self._keep_on(weight)
            if bool((weight.detach()[~keep] != 0).any()):
                weight.mul_(keep)
        self._seen = (id(weight), weight._version)

    def _keep_on(self, weight: Tensor) -> Tensor:
        if self.keep.device != weight.device:
            self.keep = self.keep.to(weight.device)
        return self.keep

    def _watch_gradient(self, weight: Tensor) -> None:
        if weight.requires_grad and self._hooked != id(weight):
            self.release()
            self._handle = weight.register_hook(lambda gradient: gradient * self._keep_on(gradient))
            self._hooked = id(weight)


class _Around:
    """A hook of modules around masked layers: some use a layer's weight without calling the layer.

    Attention does so with its last layer, and a model that trains for a target with all of them.
    """

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Before forward: the masks of all layers inside."""
        for layer in module.modules():
            mask = _mask(layer)
            if mask is not None:
                mask(layer, args)


def attach(model: nn.Module, path: str, keep: Tensor) -> None:
    """Set weights of a layer to zero and hold them there; a mask that the layer had is replaced.

    Args:
        path: the path of the layer, which has a parameter `weight`.
        keep: bool, shape of the weight.
    """
    layer = model.get_submodule(path)
    _detach(layer)
    mask = WeightMask(keep)
    layer.register_forward_pre_hook(mask)
    layer.register_state_dict_pre_hook(mask.before_state_dict)
    for around in {model, model.get_submodule(path.rpartition(".")[0])} - {layer}:
        if not any(isinstance(hook, _Around) for hook in around._forward_pre_hooks.values()):
            around.register_forward_pre_hook(_Around())
    mask.apply(layer)


def masks_of(model: nn.Module) -> dict[str, WeightMask]:
    """The masks of a model by the path of their layers."""
    found = ((path, _mask(module)) for path, module in model.named_modules())
    return {path: mask for path, mask in found if mask is not None}


def finish(model: nn.Module) -> nn.Module:
    """Take all masks away, after setting the masked weights to zero a last time.

    Args:
        model: changed in place.
    Returns:
        The same model.
    """
    for module in model.modules():
        _detach(module)
    return model


def _mask(module: nn.Module) -> WeightMask | None:
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightMask)), None)


def _detach(module: nn.Module) -> None:
    _remove(module._forward_pre_hooks, lambda hook: isinstance(hook, _Around))
    mask = _mask(module)
    if mask is None:
        return
    mask.apply(module)
    mask.release()
    for table in (module._forward_pre_hooks, module._state_dict_pre_hooks):
        _remove(table, lambda hook: mask in (hook, getattr(hook, "__self__", None)))


def _remove(table: Any, wanted: Callable[[Any], bool]) -> None:
    for key in [key for key, hook in table.items() if wanted(hook)]:
        del table[key]
