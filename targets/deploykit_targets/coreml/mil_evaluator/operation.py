"""What a row of an op table is, and the few readings of MIL arguments that many ops share.

An op function is plain PyTorch over MIL's own parameter names. It gets
- tensors for everything that may be computed at run time, and for constants of rank >= 1;
- Python numbers, bools and strings for scalars that the op set declares constant;
- lists for tuples of tensors and for MIL lists; None for an optional input that is absent.
It returns a tensor, or a tuple of them where the op has several outputs. It never rounds to float16: the
executor does that once per output (see `dtypes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.errors import EvaluationError

OpFunction = Callable[..., Any]
IOS17 = 8
"""First specification version of the iOS17 op set, whose gather and reshape rules differ from the older ones."""


@dataclass(frozen=True, slots=True)
class OutputType:
    """Static type of one op output.

    Attributes:
        dtype: MIL name, such as `fp16`; `other` for lists, states and dictionaries.
        shape: sizes, None where they are only known at run time; None for what is no tensor.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices of a run.

    Attributes:
        undefined_indices: what to do where Core ML calls the result undefined (an index out of range with
            `validate_indices=False`): refuse, or clamp the index into range.
        generator: source of the random ops; seeded, so that runs repeat.
    """

    undefined_indices: Literal["error", "clamp"] = "error"
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


@dataclass(frozen=True, slots=True)
class Context:
    """What an op function may know beyond its inputs; passed as `context` to those that name it."""

    op_type: str
    output: str
    opset: int
    outputs: tuple[OutputType, ...]
    input_dtypes: Mapping[str, str]
    settings: Settings

    def fail(self, message: str, hint: str | None = None) -> EvaluationError:
        """An EvaluationError that names this op."""
        return EvaluationError(message, op_type=self.op_type, output=self.output, hint=hint)


@dataclass(frozen=True, slots=True)
class Op:
    """One evaluation rule.

    Attributes:
        function: the computation, by MIL parameter names.
        exact: every output value is one of the input values (or a bool or an integer), so that there is
            nothing to round.
        pure: same inputs, same outputs; such an op is evaluated once when all its inputs are constant.
        wants_context: the function takes `context`.
    """

    function: OpFunction
    exact: bool = False
    pure: bool = True
    wants_context: bool = False


OpTable = Mapping[str, Op]


def rounds(function: OpFunction, *, context: bool = False) -> Op:
    """A rule whose float16 results are rounded once."""
    return Op(function, wants_context=context)


def moves(function: OpFunction, *, context: bool = False) -> Op:
    """A rule that only moves, selects or counts values, so that its results need no rounding."""
    return Op(function, exact=True, wants_context=context)


def draws(function: OpFunction) -> Op:
    """A rule that draws random numbers: never folded."""
    return Op(function, pure=False, wants_context=True)


def ints(value: Tensor | Sequence[int] | int) -> list[int]:
    """The integers of a MIL argument (rank 0 or 1), as a list."""
    if isinstance(value, Tensor):
        return [int(item) for item in value.reshape(-1).tolist()]
    return [int(value)] if isinstance(value, int) else [int(item) for item in value]


def axes_of(axes: Tensor | Sequence[int] | int | None, rank: int) -> list[int]:
    """Axes made non-negative; None is all of them."""
    return list(range(rank)) if axes is None else [axis % rank for axis in ints(axes)]


def per_channel(vector: Tensor, rank: int, axis: int = 1) -> Tensor:
    """A (C,) vector, viewed so that it broadcasts along `axis` of a tensor of `rank`."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
