"""Turns a PyMIL function into a plan: steps with bound constants, slots for values, and what each step frees.

A slot is a number that stands for one SSA variable. Constants are bound into the steps; ops whose inputs are all
constant (decompression of weights above all) are set apart, to be evaluated once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploykit_targets.coreml.mil_evaluator import milproto
from deploykit_targets.coreml.mil_evaluator.dtypes import to_carrier
from deploykit_targets.coreml.mil_evaluator.errors import UnsupportedOpError
from deploykit_targets.coreml.mil_evaluator.operation import Op, OutputType
from deploykit_targets.coreml.mil_evaluator.ops_control import EXECUTOR_OPS
from deploykit_targets.coreml.mil_evaluator.rules import RULES


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of a value that is computed at run time."""

    key: int


Argument = Any
"""A constant (tensor, number, string, list), a Slot, or a list that holds Slots."""


@dataclass(frozen=True, slots=True)
class Step:
    """One op of a plan.

    Attributes:
        op_type, output: MIL name, and name of the first output.
        rule: None for what the executor runs itself.
        constants: arguments that are bound already.
        slots: arguments that are one value.
        tuples: arguments that are several values, some of which may be constant.
        keys: slots of the outputs.
        types: static types of the outputs.
        input_dtypes: MIL dtype of each single input.
        blocks: plans of the nested blocks.
        frees: slots that no later step reads.
    """

    op_type: str
    output: str
    rule: Op | None
    constants: Mapping[str, Any]
    slots: tuple[tuple[str, int], ...]
    tuples: tuple[tuple[str, tuple[Argument, ...]], ...]
    keys: tuple[int, ...]
    types: tuple[OutputType, ...]
    input_dtypes: Mapping[str, str]
    blocks: tuple[BlockPlan, ...]
    frees: tuple[int, ...]

    @property
    def reads(self) -> set[int]:
        """Slots that this step or its nested blocks read."""
        found = {key for _, key in self.slots}
        found |= {item.key for _, items in self.tuples for item in items if isinstance(item, Slot)}
        for block in self.blocks:
            found |= block.reads
        return found


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """A function's body, or a nested block.

    Attributes:
        inputs: slots that the caller fills.
        steps: in order.
        outputs: slots or constants.
    """

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Argument, ...]

    @property
    def reads(self) -> set[int]:
        """All slots that are read inside, also those defined inside."""
        found = {item.key for item in self.outputs if isinstance(item, Slot)}
        for step in self.steps:
            found |= step.reads
        return found


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """A function, ready to run.

    Attributes:
        body: what is evaluated on every run.
        constant_steps: what depends on constants only; evaluated once, never freed.
        inputs: name -> slot, states included.
        opset: specification version of the function's op set.
    """

    body: BlockPlan
    constant_steps: tuple[Step, ...]
    inputs: Mapping[str, int]
    opset: int


def plan_function(function: Any, *, opset: int, fold_constants: bool) -> FunctionPlan:
    """Plan a PyMIL function.

    Args:
        function: PyMIL function.
        opset: specification version of its op set.
        fold_constants: set ops of constants apart.
    Raises:
        UnsupportedOpError: an op has no rule.
    """
    return _Planner(opset, fold_constants).function(function)


class _Planner:
    def __init__(self, opset: int, fold_constants: bool) -> None:
        self.opset = opset
        self.fold_constants = fold_constants
        self.keys: dict[int, int] = {}
        self.constants: dict[int, Any] = {}
        self.folded: set[int] = set()
        self.constant_steps: list[Step] = []

    def function(self, function: Any) -> FunctionPlan:
        inputs = {name: self._key(variable) for name, variable in function.inputs.items()}
        body = self._block(function, tuple(inputs.values()))
        return FunctionPlan(body, tuple(self.constant_steps), inputs, self.opset)

    def _key(self, variable: Any) -> int:
        return self.keys.setdefault(id(variable), len(self.keys))

    def _block(self, block: Any, inputs: tuple[int, ...]) -> BlockPlan:
        steps = [step for operation in block.operations for step in self._steps(operation)]
        outputs = tuple(self._argument(variable) for variable in block.outputs)
        return BlockPlan(inputs, tuple(_with_frees(inputs, steps, outputs)), outputs)

    def _steps(self, operation: Any) -> Iterator[Step]:
        """The step of an operation: none for a constant, nor for what is folded away."""
        if operation.op_type in ("const", "_const_symbolic"):
            self._check_known(operation)
            self.constants[id(operation.outputs[0])] = _constant(operation.outputs[0])
            return
        step = self._step(operation)
        if self.fold_constants and self._is_constant(step):
            self.constant_steps.append(step)
            self.folded.update(step.keys)
        else:
            yield step

    def _is_constant(self, step: Step) -> bool:
        return step.rule is not None and step.rule.pure and not step.blocks and step.reads <= self.folded

    def _step(self, operation: Any) -> Step:
        self._check(operation)
        constants: dict[str, Any] = {}
        slots: list[tuple[str, int]] = []
        tuples: list[tuple[str, tuple[Argument, ...]]] = []
        for name, value in operation.inputs.items():
            if name.startswith("_") or value is None:
                continue
            if isinstance(value, list | tuple):
                tuples.append((name, tuple(self._argument(item) for item in value)))
                continue
            argument = self._argument(value)
            if isinstance(argument, Slot):
                slots.append((name, argument.key))
            else:
                constants[name] = _as_declared(argument, operation.input_spec.input_types[name])
        blocks = tuple(
            self._block(block, tuple(self._key(variable) for variable in block.inputs)) for block in operation.blocks
        )
        return Step(
            op_type=operation.op_type,
            output=operation.outputs[0].name if operation.outputs else operation.name,
            rule=RULES.get(operation.op_type),
            constants=constants,
            slots=tuple(slots),
            tuples=tuple(tuples),
            keys=tuple(self._key(variable) for variable in operation.outputs),
            types=tuple(OutputType(*milproto.type_of(variable)) for variable in operation.outputs),
            input_dtypes=dict(_input_dtypes(operation)),
            blocks=blocks,
            frees=(),
        )

    def _argument(self, variable: Any) -> Argument:
        if id(variable) in self.constants:
            return self.constants[id(variable)]
        return Slot(self._key(variable))

    def _check(self, operation: Any) -> None:
        if operation.op_type not in RULES and operation.op_type not in EXECUTOR_OPS:
            raise UnsupportedOpError(
                operation.op_type,
                output=operation.outputs[0].name if operation.outputs else "",
                specification_version=self.opset,
            )

    def _check_known(self, operation: Any) -> None:
        """Refuse a constant of symbols: sizes that coremltools did not know, which no input and no file gives."""
        if operation.op_type == "_const_symbolic" and operation.outputs[0].val is None:
            raise UnsupportedOpError(
                operation.op_type,
                output=operation.outputs[0].name,
                specification_version=self.opset,
                reason=f"its value {operation.outputs[0].sym_val} holds sizes that nothing binds, and has no file form",
            )


def _input_dtypes(operation: Any) -> Iterator[tuple[str, str]]:
    for name, value in operation.inputs.items():
        if value is not None and not name.startswith("_") and not isinstance(value, list | tuple):
            yield name, milproto.type_of(value)[0]


def _constant(variable: Any) -> Any:
    """Value of a constant: a tensor, a string, or a list of strings or integers."""
    value = variable.val
    items = milproto.list_items(value)
    if items is not None:
        return items
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "UO":
        return [str(item) for item in array.reshape(-1)]
    return to_carrier(array, milproto.type_of(variable)[0])


def _as_declared(argument: Any, declared: Any) -> Any:
    """Scalars that the op set declares constant become Python numbers."""
    if getattr(declared, "const", False) and getattr(argument, "ndim", None) == 0:
        return argument.item()
    return argument


def _with_frees(inputs: Sequence[int], steps: Sequence[Step], outputs: Iterable[Argument]) -> Iterator[Step]:
    """The steps, each with the slots of this block that it is the last to touch."""
    kept = {item.key for item in outputs if isinstance(item, Slot)}
    last: dict[int, int] = {}
    owned = set(inputs)
    for position, step in enumerate(steps):
        owned.update(step.keys)
        for key in (*step.keys, *step.reads):
            last[key] = position
    freed: dict[int, list[int]] = {}
    for key, position in last.items():
        if key in owned and key not in kept:
            freed.setdefault(position, []).append(key)
    for position, step in enumerate(steps):
        yield replace(step, frees=tuple(freed.get(position, ())))
