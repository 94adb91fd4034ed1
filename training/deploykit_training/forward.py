"""The user's module while it trains for a target: its own forward is swapped for one that runs the live graph.

`LiveForward` takes what the module's own forward takes and returns what it returns, nested and named in the same way.
It stands in the instance's `__dict__`, so that `state_dict`, optimisers and wrappers see the module that they know.
A deep copy of the module (an average of weights, say) runs on the copy's own parameters; a pickled module comes back
with its own forward.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploykit.capture import CapturedModel
from deploykit.capture.borrowed import borrowed
from deploykit.capture.inputs import Path, flatten_inputs, register_dataclasses
from deploykit.capture.sources import Source
from deploykit.contract.errors import CaptureError, UsageError
from deploykit.contract.tensors import TensorSpec
from deploykit_training.live import LiveGraph, own_of
from deploykit_training.pruning.masks import WeightMask


@dataclass(frozen=True)
class Interface:
    """How the arguments of forward become flat tensors, and flat results what forward returns.

    Attributes:
        parameters: positional parameter names of forward.
        paths: the paths of the tensor inputs, in the order of the graph's placeholders.
        specs: the specs of the tensor inputs.
        baked: what else the example call held: flags and numbers, which are part of the graph.
        outputs: the structure of what forward returns.
        leaves: its leaves; None where a tensor goes.
    """

    parameters: tuple[str, ...]
    paths: tuple[Path, ...]
    specs: tuple[TensorSpec, ...]
    baked: Mapping[Path, Any]
    outputs: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, source: Source, captured: CapturedModel) -> Interface:
        """Look at one call of the model on its example inputs.

        Raises:
            CaptureError: it returns another number of tensors than was captured.
        """
        assert isinstance(source.model, nn.Module)
        flat = flatten_inputs(source.args, source.kwargs, source.parameters)
        with borrowed(source.model) as module:
            result = module(*source.args, **source.kwargs)
        register_dataclasses(result)
        leaves, spec = pytree.tree_flatten(result)
        tensors = sum(isinstance(leaf, Tensor) for leaf in leaves)
        if tensors != len(captured.outputs):
            raise CaptureError(
                f"the model returns {tensors} tensors, and its graph {len(captured.outputs)}",
                hint="return the same in every call, or train the submodule that computes",
            )
        return cls(
            source.parameters,
            tuple(leaf.path for leaf in captured.input_tree.leaves),
            captured.inputs,
            {leaf.path: value for leaf, value in flat if not isinstance(value, Tensor)},
            spec,
            tuple(_HOLE if isinstance(leaf, Tensor) else leaf for leaf in leaves),
        )

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call, flat.

        Raises:
            UsageError: one is missing or does not fit, or an argument is not as it was captured; the message names it.
        """
        given = {leaf.path: value for leaf, value in flatten_inputs(args, kwargs, self.parameters)}
        missing = [path for path in self.paths if not isinstance(given.get(path), Tensor)]
        if missing:
            raise UsageError(f"forward got no tensor {_said(missing[0])}", hint="call it as example_inputs do")
        for path in given.keys() - set(self.paths):
            self._check(path, given[path])
        tensors = [given[path] for path in self.paths]
        for spec, tensor in zip(self.specs, tensors, strict=True):
            if not spec.accepts(tuple(tensor.shape)):
                raise UsageError(
                    f"input {spec.name!r} has shape {tuple(tensor.shape)}; {spec} was captured",
                    hint="a batch that varies needs dynamic_batch=True (the default), another axis dynamic_shapes=;"
                    " where neither can be, drop the last, smaller batch (drop_last=True)",
                )
        return tensors

    def _check(self, path: Path, value: Any) -> None:
        if value is None and path not in self.baked:
            return
        if isinstance(value, Tensor) or path not in self.baked or self.baked[path] != value:
            was = f"; it was {self.baked[path]!r}" if path in self.baked else ", and example_inputs have none"
            shown = "a tensor" if isinstance(value, Tensor) else repr(value)
            raise UsageError(
                f"forward got {_said(path)} = {shown}{was}: what was captured is trained",
                hint="put it into example_inputs, or compute what it is for (a loss, say) outside of forward",
            )

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """What forward returns for these results of the graph."""
        remaining = iter(tensors)
        leaves = [next(remaining) if leaf is _HOLE else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.outputs)


_HOLE = object()


def _said(path: Path) -> str:
    return ".".join(map(str, path))


class LiveForward:
    """Stands in for a module's forward.

    Attributes:
        calls: how often it ran; tells a training loop that goes around it.
        live_steps: how many further training steps use the batch's statistics in batch norms.
        not_for_capture: why a module with this forward is not captured.
    """

    not_for_capture = "the model is being trained for a target: its forward is the quantised graph"

    def __init__(self, module: nn.Module, graph: LiveGraph, interface: Interface) -> None:
        self.module, self.graph, self.interface = module, graph, interface
        self.calls, self.live_steps = 0, 0
        self.__signature__ = inspect.signature(_own_forward(module))  # trainers look which columns it takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the live graph on the module's parameters of the moment."""
        if torch.compiler.is_exporting():
            raise UsageError(self.not_for_capture, hint="export what deploykit.qat gave: trained.export(...)")
        self.calls += 1
        hold_masks(self.module)
        inputs = self.interface.inputs(args, kwargs)
        norms_in = None
        if self.live_steps > 0 and self.module.training and torch.is_grad_enabled():
            self.live_steps, norms_in = self.live_steps - 1, self.module
        return self.interface.result(self.graph.run(own_of(self.module), inputs, norms_in=norms_in))

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveForward:
        return type(self)(memo.get(id(self.module), self.module), self.graph, self.interface)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _own_forward, (self.module,)


def hold_masks(module: nn.Module) -> None:
    """What masks of `deploykit.prune` do before the forward of their layer, which is not called here."""
    for child in module.modules():
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, WeightMask):
                hook(child, ())


def _own_forward(module: nn.Module) -> Any:
    return types.MethodType(type(module).forward, module)


def swap(module: nn.Module, forward: LiveForward) -> Any:
    """Let a module run another forward; returns what `restore` needs."""
    before = module.__dict__.get("forward")
    module.forward = forward
    return before


def restore(module: nn.Module, before: Any) -> None:
    """Give a module its forward back."""
    module.__dict__.pop("forward", None)
    if before is not None:
        module.forward = before


@contextmanager
def plain(module: nn.Module) -> Iterator[nn.Module]:
    """The module with its own forward for a while, where a live one or one of accelerate's (for autocast) stands."""
    current = module.__dict__.get("forward")
    swapped = isinstance(current, LiveForward) or "_original_forward" in module.__dict__
    if swapped:
        restore(module, None)
    try:
        yield module
    finally:
        if swapped and current is not None:
            module.forward = current
