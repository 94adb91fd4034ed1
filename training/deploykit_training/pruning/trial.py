"""Removing channels, and proving that nothing but them went: each attempt is on a copy, and is compared with a mask."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.capture.check import difference
from deploykit_training.pruning.calls import Calls, tensors_of
from deploykit_training.pruning.choose import Choice
from deploykit_training.pruning.groups import Dependencies, Member
from deploykit_training.pruning.masked import mask
from deploykit_training.pruning.working_copy import plain_copy, scrambled


def remove(model: nn.Module, calls: Calls, choices: Sequence[Choice]) -> tuple[nn.Module, list[Choice], dict[str, str]]:
    """Remove what can be proved to be removed.

    Args:
        model: left alone.
        choices: one for each group.
    Returns:
        The smaller copy, the choices that it lacks the channels of, and why others stay, by root.
    """
    pruned, problem = attempt(model, calls, choices)
    if pruned is not None:
        return pruned, list(choices), {}
    kept, good, drawn = {}, [], scrambled(model)
    for choice in choices:
        alone, problem = _attempt(drawn, calls, [choice])
        if alone is None:
            kept[choice.group.root] = problem
        else:
            good.append(choice)
    pruned, problem = attempt(model, calls, good)
    if pruned is not None:
        return pruned, good, kept
    return _one_by_one(model, calls, good, kept)


def _one_by_one(
    model: nn.Module, calls: Calls, choices: Sequence[Choice], kept: dict[str, str]
) -> tuple[nn.Module, list[Choice], dict[str, str]]:
    """Each of the choices works alone; take one more as long as they work together."""
    best, good = plain_copy(model), list[Choice]()
    for choice in choices:
        pruned, problem = attempt(model, calls, [*good, choice])
        if pruned is None:
            kept[choice.group.root] = f"not together with {', '.join(c.group.root for c in good[:3])}: {problem}"
        else:
            best, good = pruned, [*good, choice]
    return best, good, kept


def attempt(model: nn.Module, calls: Calls, choices: Sequence[Choice]) -> tuple[nn.Module | None, str]:
    """Remove channels from a copy, and compare it with a copy in which they are masked.

    First with random weights: whether a group is right does not depend on them, and small ones would hide what is
    wrong.

    Returns:
        The smaller copy and "", or None and what went wrong.
    """
    drawn, problem = _attempt(scrambled(model), calls, choices)
    return (None, problem) if drawn is None else _attempt(model, calls, choices)


def _attempt(model: nn.Module, calls: Calls, choices: Sequence[Choice]) -> tuple[nn.Module | None, str]:
    graph = Dependencies(model, calls.run)
    members = [graph.members(choice.group.root, choice.index) for choice in choices]
    more = _more_than_asked(choices, members)
    if more:
        return None, more
    try:
        for choice in choices:
            graph.remove(choice.group.root, choice.index)
    except Exception as error:  # asserts and indices of the pruning functions
        return None, f"Torch-Pruning fails: {type(error).__name__}: {error}{_where(members)}"
    pruned = graph.copy.restore()
    problem = _differs(model, [m for each in members for m in each], pruned, calls)
    return (None, problem + _where(members)) if problem else (pruned, "")


def _more_than_asked(choices: Sequence[Choice], members: Sequence[Sequence[Member]]) -> str:
    """A layer that would lose more of its own channels than were chosen: `chunk` and `split` fold them."""
    for choice, own in zip(choices, members, strict=True):
        for member in own:
            if member.path == choice.group.root and member.role != "in" and set(member.index) - set(choice.index):
                return f"{member.path} would lose {len(member.index)} channels instead of {len(choice.index)}"
    return ""


def _where(members: Sequence[Sequence[Member]]) -> str:
    """What in a group is not a layer, and so likely misread."""
    names = sorted({m.path for own in members for m in own if m.kind == "PARAMETER"})
    return f" (beside layers it holds {', '.join(names[:3])})" if names else ""


@torch.no_grad()
def _differs(model: nn.Module, members: Sequence[Member], pruned: nn.Module, calls: Calls) -> str:
    """How the outputs differ; "" where they do not. In float64 where the model runs in it: rounding hides nothing."""
    dtype = _widest(model, calls)
    masked, pruned = mask(plain_copy(model).to(dtype), members), copy.deepcopy(pruned).to(dtype)
    for leaves in (calls.example, calls.noisy()):
        try:
            want = _outputs(masked, calls, leaves, dtype)
        except Exception as error:
            if leaves is calls.example:
                return f"the model does not run with its channels masked: {_first_line(error)}"
            continue  # noise is no valid input of this model
        try:
            have = _outputs(pruned, calls, leaves, dtype)
        except Exception as error:
            return f"the smaller model does not run: {_first_line(error)}"
        problem = _compare(want, have)
        if problem:
            return problem
    return ""


def _widest(model: nn.Module, calls: Calls) -> torch.dtype:
    """float64, or float32 where the model fixes a dtype somewhere."""
    try:
        _outputs(plain_copy(model).double(), calls, calls.example, torch.float64)
    except Exception:
        return torch.float32
    return torch.float64


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _compare(want: Sequence[Tensor], have: Sequence[Tensor]) -> str:
    if [x.shape for x in want] != [x.shape for x in have]:
        return "an output would have another shape"
    problem = difference(want, have)
    return f"removing its channels is not the same as masking them: {problem}" if problem else ""


def _outputs(model: nn.Module, calls: Calls, leaves: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    given = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in leaves]
    return tensors_of(calls.call(model, given))


@torch.no_grad()
def masked_error(model: nn.Module, calls: Calls, members: Sequence[Member]) -> float:
    """Relative squared error of the outputs with channels masked: noise energy over signal energy."""
    want = tensors_of(calls.run(plain_copy(model)))
    have = tensors_of(calls.run(mask(plain_copy(model), members)))
    pairs = [(w.double(), h.double()) for w, h in zip(want, have, strict=True) if w.is_floating_point()]
    noise = sum(float((w - h).square().sum()) for w, h in pairs)
    return noise / max(sum(float(w.square().sum()) for w, _ in pairs), 1e-30)
