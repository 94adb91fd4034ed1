"""`borrowed(module)`: run somebody else's module in eval mode and leave it exactly as it was.

Parameters are shared, not copied. Inside the block every submodule is in eval mode (the flag is set directly, because
`train()` may be overridden to merge weights or freeze layers), gradients are off, a Lightning module has no trainer, a
Hugging Face model returns no cache. Afterwards every attribute, flag, buffer value and random state is restored. Not
covered: what `forward` does outside the module (files, globals, objects it holds in lists).

PyTorch's own transformer layers run as they are written: their fused path, which tracing never takes, returns zeros at
padded positions where the layers do not, and their look at the values of a mask only picks a faster kernel.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

_CONTAINERS = (dict, OrderedDict, list, set)
_DETECT = "_detect_is_causal_mask"
_TRAINER_ATTRIBUTES = ("_trainer", "_fabric")


@contextmanager
def borrowed(module: nn.Module) -> Iterator[nn.Module]:
    """Lend `module` in eval mode without gradients; see the module's docstring for what is restored."""
    modules = list(module.modules())
    attributes = [(m, _snapshot(m)) for m in modules]
    buffers = [(b, b._version, b.detach().clone()) for b in module.buffers()]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _plain_transformers():
        try:
            for child in modules:
                child.training = False
                for name in _TRAINER_ATTRIBUTES:
                    if name in child.__dict__:
                        child.__dict__[name] = None
            with _without_cache(module):
                yield module
        finally:
            for child, saved in attributes:
                _restore(child, saved)
            for buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)


def as_cpu_float32(module: nn.Module) -> nn.Module:
    """The module itself when it is on the CPU with float32 weights, else a copy that is (no second copy elsewhere).

    Raises:
        whatever `copy.deepcopy` raises for a module that cannot be copied.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if all(map(_is_plain, tensors)):
        return module
    copies: dict[int, Any] = {id(tensor): _plain_copy(tensor) for tensor in tensors}
    return copy.deepcopy(module, copies).to(device="cpu").float()  # for what else a module notes of its device


def _plain_copy(tensor: Tensor) -> Tensor:
    plain = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain


def _is_plain(tensor: Tensor) -> bool:
    """Whether a weight can be traced where it is; one made under `inference_mode` cannot."""
    if tensor.is_inference():
        return False
    return tensor.device.type == "cpu" and (not tensor.is_floating_point() or tensor.dtype == torch.float32)


def _snapshot(module: nn.Module) -> list[tuple[str, Any, Any]]:
    """Every attribute with its name, and for plain containers (registries, hook tables) a shallow copy too."""
    return [
        (name, value, value.copy() if type(value) in _CONTAINERS else None) for name, value in module.__dict__.items()
    ]


def _restore(module: nn.Module, saved: list[tuple[str, Any, Any]]) -> None:
    """Put attributes back; containers keep their identity, because others may hold them."""
    current = module.__dict__
    for name in current.keys() - {name for name, _, _ in saved}:
        del current[name]
    for name, value, contents in saved:
        current[name] = value
        if isinstance(value, list) and contents is not None:
            value[:] = contents
        elif contents is not None and _items(value) != _items(contents):
            value.clear()
            value.update(contents)


def _items(container: Any) -> list[tuple[int, int]]:
    """Identities of keys and values, so that tensors inside are not compared."""
    return [(id(key), id(container[key]) if isinstance(container, dict) else 0) for key in container]


@contextmanager
def _plain_transformers() -> Iterator[None]:
    """No fused path, and no comparison of a mask with a causal one (it may be an input, whose values nobody knows)."""
    enabled, detect = torch.backends.mha.get_fastpath_enabled(), getattr(transformer, _DETECT, None)
    torch.backends.mha.set_fastpath_enabled(False)
    if detect is not None:
        setattr(transformer, _DETECT, lambda mask, is_causal=None, size=None: is_causal is True)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
        if detect is not None:
            setattr(transformer, _DETECT, detect)


@contextmanager
def _without_cache(module: nn.Module) -> Iterator[None]:
    """Hugging Face decoders return a key-value cache by default; an exported forward should not."""
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    saved = [(c, c.use_cache) for c in configs.values() if getattr(c, "use_cache", None) is True]
    try:
        for config, _ in saved:
            config.use_cache = False
        yield
    finally:
        for config, value in saved:
            config.use_cache = value
