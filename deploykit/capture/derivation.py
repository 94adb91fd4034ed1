"""How a constant of the flat graph follows from the model's own parameters and buffers, op by op.

Capture folds what no input changes (batch norms into convolutions, transposes, parts of packed projections), and every
target wants it so. Training wants the opposite: the folded constant as a differentiable function of the parameters.
Each fold therefore leaves a `Derived` beside the value: the function and what it was given. It costs a few small
objects; tensors are named, not held, save small literals that the model itself wrote into its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate


@dataclass(frozen=True, eq=False)
class Own:
    """A tensor of the model itself.

    Attributes:
        name: the name of the parameter or buffer, as in `named_parameters()` or `named_buffers()`.
    """

    name: str


@dataclass(frozen=True, eq=False)
class Derived:
    """What a function makes of other tensors.

    Attributes:
        function: differentiable, without state; gives a tensor, or a tuple that another one takes apart.
        operands: `Own`, `Derived`, or a value that never changes.
    """

    function: Callable[..., Any]
    operands: tuple[Any, ...]


Derivation = Own | Derived


@dataclass(frozen=True)
class _Slot:
    """Where an operand goes in the arguments of a call."""

    index: int


def of_call(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """The derivation of a call on values whose derivations (or literal values) are known.

    Args:
        known: what is known of every node that the call reads: `Own`, `Derived` or a literal.
    Returns:
        A `Derived`; where nothing of the model is read, None.
    """
    sources = node.all_input_nodes
    operands = tuple(known[source] for source in sources)
    if not any(isinstance(operand, Derivation) for operand in operands):
        return None
    slots: dict[fx.Node, Any] = {source: _Slot(index) for index, source in enumerate(sources)}
    args, kwargs = fx.map_arg((node.args, node.kwargs), slots.__getitem__)
    return Derived(partial(_call, cast(Callable[..., Any], node.target), args, kwargs), operands)


def _call(target: Callable[..., Any], args: Any, kwargs: Any, *values: Any) -> Any:
    filled: Any = map_aggregate((args, kwargs), lambda each: values[each.index] if isinstance(each, _Slot) else each)
    return target(*filled[0], **filled[1])


def own_names(derivation: Any) -> Iterator[str]:
    """Names of the model's tensors that a derivation reads, each once."""
    seen: set[int] = set()
    names: set[str] = set()
    pending = [derivation]
    while pending:
        each = pending.pop()
        if isinstance(each, Own) and each.name not in names:
            names.add(each.name)
            yield each.name
        elif isinstance(each, Derived) and id(each) not in seen:
            seen.add(id(each))
            pending += each.operands


def evaluate(
    derivation: Any, own: Callable[[str], Tensor], known: dict[int, Any], device: torch.device | None = None
) -> Any:
    """The value of a derivation, by the same operators in the same order as capture computed it.

    Args:
        own: gives a tensor of the model by its name.
        device: the device of the tensors that `own` gives; literals are moved there. None for the CPU.
        known: what was evaluated before from the same tensors, by identity; it is added to.
    Returns:
        A tensor that depends on the model's differentiably; a literal as it is.
    """
    if isinstance(derivation, Own):
        return own(derivation.name)
    if not isinstance(derivation, Derived):
        return derivation.to(device) if isinstance(derivation, Tensor) and device is not None else derivation
    if id(derivation) not in known:
        operands = [evaluate(operand, own, known, device) for operand in derivation.operands]
        known[id(derivation)] = derivation.function(*operands)
    return known[id(derivation)]
