"""The part of a LightningModule that a callback is for."""

from __future__ import annotations

from torch import nn

from deploykit.contract.errors import UsageError


def submodule(module: nn.Module, path: str) -> nn.Module:
    """A submodule by its dotted path; "" is the module itself.

    Raises:
        UsageError: there is no such submodule; the hint names those at the top.
    """
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        names = ", ".join(name for name, _ in module.named_children())
        raise UsageError(f"there is no submodule {path!r}", hint=f"one of {names}, or deeper") from error
