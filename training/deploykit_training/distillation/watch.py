"""Looking into a model while it runs: outputs of modules by path, and a teacher that is left as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploykit.contract.errors import UsageError


@contextmanager
def watched(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules give while the block runs; the hooks are gone after it, whatever happened.

    Args:
        paths: the paths of modules; "" for the model itself.
    Yields:
        First tensor of the last output of each, by path; filled while the model runs.
    Raises:
        UsageError: there is no module of that path.
    """
    found: dict[str, Tensor] = {}
    handles = []
    try:
        for path in dict.fromkeys(paths):
            handles.append(_module(model, path).register_forward_hook(_keeper(path, found)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def require_all(model: nn.Module, paths: Iterable[str], found: dict[str, Tensor]) -> None:
    """Refuse where a module was not called.

    Raises:
        UsageError: naming it.
    """
    missing = [path for path in paths if path not in found]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} of {type(model).__name__} was not called while the model ran",
            hint="choose modules that its forward calls; while training with deploykit.qat the placed graph runs"
            " instead of the modules, and only outputs can be compared (Response, Relation)",
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode inside the block, each of its modules in its own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def first_tensor(result: Any) -> Tensor | None:
    """The first floating-point tensor of a model's or a module's output."""
    leaves = (leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return next(leaves, None)


def logits_of(result: Any, model: nn.Module) -> Tensor:
    """The output that is compared: `logits` where the model names one so, else its first tensor.

    Raises:
        UsageError: there is none.
    """
    named = result.get("logits") if isinstance(result, dict) else getattr(result, "logits", None)
    found = named if isinstance(named, Tensor) else first_tensor(result)
    if found is None:
        raise UsageError(f"{type(model).__name__} gives no floating-point tensor", hint="distil a model that does")
    return found


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        raise UsageError(
            f"{type(model).__name__} has no module {path!r}", hint=f"modules: {', '.join(names[:12])}"
        ) from None


def _keeper(path: str, found: dict[str, Tensor]) -> Any:
    def keep(module: nn.Module, args: Any, result: Any) -> None:
        tensor = first_tensor(result)
        if tensor is not None:
            found[path] = tensor

    return keep
