"""Runs a plan: evaluates steps in order, rounds float16 results once, frees every value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.dtypes import CARRIERS, round_to_half
from deploykit_targets.coreml.mil_evaluator.errors import EvaluationError
from deploykit_targets.coreml.mil_evaluator.operation import Context, Op, OutputType, Settings
from deploykit_targets.coreml.mil_evaluator.plan import Argument, BlockPlan, FunctionPlan, Slot, Step

Values = dict[int, Any]
_REFUSALS: Final = (RuntimeError, ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError)


@dataclass(slots=True)
class Frame:
    """What a run needs beside its plan.

    Attributes:
        values: slot -> value, of everything alive.
        state: state name -> tensor, read and written by the program.
        settings: choices of the run.
        opset: op set version of the function.
        peak_values: the most values that were alive at once.
    """

    values: Values
    state: dict[str, Tensor]
    settings: Settings
    opset: int
    peak_values: int = field(default=0)


def evaluate_constants(plan: FunctionPlan, settings: Settings) -> Values:
    """Values of the plan's constant steps, by slot.

    Raises:
        EvaluationError: an op refused its inputs.
    """
    frame = Frame({}, {}, settings, plan.opset)
    for step in plan.constant_steps:
        _run_step(step, frame)
    return frame.values


def run(plan: FunctionPlan, constants: Mapping[int, Any], inputs: Mapping[int, Any], frame: Frame) -> list[Any]:
    """Evaluate a function.

    Args:
        plan: the function.
        constants: from `evaluate_constants`.
        inputs: value of each input slot; a state input's value is its name.
        frame: filled by the run.
    Returns:
        one value per output: a tensor, or a label.
    Raises:
        EvaluationError: an op refused its inputs.
    """
    frame.values.update(constants)
    frame.values.update(inputs)
    return _run_block(plan.body, frame)


def _run_block(block: BlockPlan, frame: Frame) -> list[Any]:
    for step in block.steps:
        _run_step(step, frame)
        frame.peak_values = max(frame.peak_values, len(frame.values))
        for key in step.frees:
            frame.values.pop(key, None)
    return [_resolve(item, frame.values) for item in block.outputs]


def _resolve(argument: Argument, values: Values) -> Any:
    return values[argument.key] if isinstance(argument, Slot) else argument


def _run_step(step: Step, frame: Frame) -> None:
    arguments = dict(step.constants)
    for name, key in step.slots:
        arguments[name] = frame.values[key]
    for name, items in step.tuples:
        arguments[name] = [_resolve(item, frame.values) for item in items]
    if step.rule is None:
        results: Iterable[Any] = _EXECUTOR_RULES[step.op_type](step, arguments, frame)
    else:
        results = _apply(step, step.rule, arguments, frame)
    for key, value in zip(step.keys, results, strict=True):
        frame.values[key] = value


def _apply(step: Step, rule: Op, arguments: dict[str, Any], frame: Frame) -> Iterable[Any]:
    if rule.wants_context:
        arguments["context"] = Context(
            step.op_type, step.output, frame.opset, step.types, step.input_dtypes, frame.settings
        )
    try:
        result = rule.function(**arguments)
    except EvaluationError:
        raise
    except _REFUSALS as error:
        raise EvaluationError(f"{type(error).__name__}: {error}", op_type=step.op_type, output=step.output) from error
    results = result if isinstance(result, tuple) else (result,)
    return [_carried(value, kind, rule.exact) for value, kind in zip(results, step.types, strict=True)]


def _carried(value: Any, kind: OutputType, exact: bool) -> Any:
    """The value in the type that carries its declared MIL type, rounded if that is float16."""
    if not isinstance(value, Tensor) or kind.dtype not in CARRIERS:
        return value
    if kind.dtype == "fp16" and not exact:
        return round_to_half(value)
    carrier = CARRIERS[kind.dtype]
    return value if value.dtype == carrier else value.to(carrier)


# --- ops that act on the running program ----------------------------------------------------------------------


def _cond(step: Step, arguments: Mapping[str, Any], frame: Frame) -> list[Any]:
    return _run_nested(step.blocks[0 if bool(arguments["pred"]) else 1], [], frame)


def _while_loop(step: Step, arguments: Mapping[str, Any], frame: Frame) -> list[Any]:
    condition, body = step.blocks
    carried: list[Any] = list(arguments["loop_vars"])
    while bool(_run_nested(condition, carried, frame)[0]):
        carried = _run_nested(body, carried, frame)
    return carried


def _run_nested(block: BlockPlan, inputs: Iterable[Any], frame: Frame) -> list[Any]:
    """Run a nested block, then drop what it defined; the values around it stay visible inside."""
    frame.values.update(zip(block.inputs, inputs, strict=True))
    results = _run_block(block, frame)
    for key in (*block.inputs, *(key for step in block.steps for key in step.keys)):
        frame.values.pop(key, None)
    return results


def _read_state(step: Step, arguments: Mapping[str, Any], frame: Frame) -> list[Any]:
    del step
    return [frame.state[arguments["input"]]]


def _update_state(step: Step, arguments: Mapping[str, Any], frame: Frame) -> list[Any]:
    del step
    frame.state[arguments["state"]] = arguments["value"]
    return [arguments["value"]]


_EXECUTOR_RULES: Final[dict[str, Callable[[Step, Mapping[str, Any], Frame], list[Any]]]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "read_state": _read_state,
    "coreml_update_state": _update_state,
}
