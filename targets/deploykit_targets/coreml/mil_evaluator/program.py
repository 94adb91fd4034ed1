"""`load`, `from_mil`, `Program`, `State`: the evaluator as its users see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deploykit.contract.errors import UsageError
from deploykit_targets.coreml.mil_evaluator import executor, milproto, package
from deploykit_targets.coreml.mil_evaluator.dtypes import CARRIERS, numpy_dtype, to_carrier, to_numpy
from deploykit_targets.coreml.mil_evaluator.operation import Settings
from deploykit_targets.coreml.mil_evaluator.plan import FunctionPlan, plan_function
from deploykit_targets.coreml.mil_evaluator.specs import (
    Interface,
    ValueSpec,
    as_tensor_input,
    chosen_inputs,
    interface_of,
    named,
)

Array = np.ndarray[Any, Any]
UndefinedIndices = Literal["error", "clamp"]


@dataclass(eq=False)
class State:
    """Memory of a stateful model between runs; made by `Program.make_state`, changed by `Program.run`.

    Attributes:
        values: state name -> tensor, in the type that carries it.
        specs: what the states are.
    """

    values: dict[str, Tensor]
    specs: Mapping[str, ValueSpec]

    def read(self, name: str) -> Array:
        """A copy of state `name`.

        Raises:
            UsageError: there is no such state.
        """
        spec = self._spec(name)
        return to_numpy(self.values[name], spec.dtype)

    def write(self, name: str, value: Array) -> None:
        """Replace state `name`.

        Raises:
            UsageError: there is no such state, or the shape is another.
        """
        spec = self._spec(name)
        self.values[name] = to_carrier(as_tensor_input(spec, value), spec.dtype)

    def _spec(self, name: str) -> ValueSpec:
        if name not in self.specs:
            raise UsageError(f"the model has no state {name!r}; it has {sorted(self.specs)}")
        return self.specs[name]


@dataclass(eq=False)
class Program:
    """One function of an ML Program, ready to be evaluated.

    Attributes:
        function: its name.
        functions: names of all functions of the package.
        specification_version: 6 is iOS15, 7 iOS16, 8 iOS17, 9 iOS18.
        interface: inputs, outputs and states.
    """

    function: str
    functions: tuple[str, ...]
    specification_version: int
    interface: Interface
    _plan: FunctionPlan
    _histogram: Mapping[str, int] = field(repr=False)
    _undefined_indices: UndefinedIndices = "error"
    _constants: Mapping[int, Any] | None = field(default=None, repr=False)

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """Inputs, in the program's order."""
        return self.interface.inputs

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """Outputs, in the program's order."""
        return self.interface.outputs

    @property
    def states(self) -> tuple[ValueSpec, ...]:
        """States; empty for a stateless model."""
        return self.interface.states

    def ops(self) -> Mapping[str, int]:
        """How many ops of each kind the function holds, nested blocks included, constants not."""
        return dict(self._histogram)

    def make_state(self) -> State:
        """Fresh state, all zeros."""
        specs = named(self.states)
        zeros = {
            name: torch.zeros([size or 1 for size in spec.shape], dtype=CARRIERS[spec.dtype])
            for name, spec in specs.items()
        }
        return State(zeros, specs)

    def run(self, feeds: Mapping[str, Array], *, state: State | None = None, seed: int = 0) -> dict[str, Array]:
        """Evaluate the program.

        Args:
            feeds: input name -> array. Optional inputs may be left out; images may be given as such.
            state: memory of a stateful model; changed by the run.
            seed: the seed of the random ops that have no seed of their own.
        Returns:
            output name -> array, in the program's order and types. A class label is an array of rank 0, class
            probabilities are a vector in the order of the output's `classes`; an image output is its tensor.
        Raises:
            UsageError: an input is missing, unknown or of the wrong shape or type; a stateful model has no state.
            EvaluationError: an op refused the values that reached it.
        """
        if self.states and state is None:
            raise UsageError("the model is stateful", hint="pass state=program.make_state(), and keep it between runs")
        settings = Settings(self._undefined_indices, torch.Generator().manual_seed(seed))
        values: dict[int, Any] = {self._plan.inputs[name]: value for name, value in self._tensors(feeds).items()}
        values |= {self._plan.inputs[spec.name]: spec.name for spec in self.states}
        frame = executor.Frame({}, dict(state.values) if state else {}, settings, self._plan.opset)
        with torch.inference_mode():
            results = executor.run(self._plan, self._folded(settings), values, frame)
            arrays = {spec.name: _array(value, spec) for spec, value in zip(self.outputs, results, strict=True)}
        if state is not None:
            state.values = frame.state
        return arrays

    def _folded(self, settings: Settings) -> Mapping[int, Any]:
        if self._constants is None:
            self._constants = executor.evaluate_constants(self._plan, settings)
        return self._constants

    def _tensors(self, feeds: Mapping[str, Array]) -> dict[str, Tensor]:
        return {spec.name: to_carrier(array, spec.dtype) for spec, array in chosen_inputs(self.inputs, feeds)}


def load(
    path: str | Path,
    *,
    function: str | None = None,
    keep_weights: bool = True,
    undefined_indices: UndefinedIndices = "error",
) -> Program:
    """Load an ML Program.

    Args:
        path: an .mlpackage, made by anyone.
        function: the name of the function in a package with several; its default one, or the only one, when not given.
        keep_weights: keep compressed weights decompressed between runs. False decompresses them on every run and
            frees each after its last use: slower, in less memory.
        undefined_indices: refuse (`error`) or `clamp` gather and scatter indices for which Core ML's result is
            undefined.
    Raises:
        MissingDependencyError: coremltools 9.0 is not installed.
        ArtifactError: the package is damaged, or no ML Program.
        UnsupportedOpError: it holds an op without a rule.
        UsageError: there is no such function.
    """
    files = package.locate(Path(path))
    specification = milproto.read_specification(files.specification)
    program = milproto.load_program(specification, files.weights)
    description = specification.description
    name = _chosen(program, function, description.defaultFunctionName)
    described = {entry.name: entry for entry in description.functions}
    return _program(
        program,
        name,
        description=described.get(name, description),
        version=specification.specificationVersion,
        keep_weights=keep_weights,
        undefined_indices=undefined_indices,
    )


def from_mil(
    program: Any,
    *,
    function: str | None = None,
    keep_weights: bool = True,
    undefined_indices: UndefinedIndices = "error",
) -> Program:
    """Evaluate a coremltools MIL program that is in memory; arguments as for `load`.

    Raises:
        ConversionError: `program` is no MIL program.
        UnsupportedOpError: it holds an op without a rule.
        UsageError: there is no such function.
    """
    mil = milproto.program_of(program)
    name = _chosen(mil, function, "")
    version = int(mil.functions[name].opset_version)
    return _program(
        mil,
        name,
        description=None,
        version=version,
        keep_weights=keep_weights,
        undefined_indices=undefined_indices,
    )


def run_package(path: str | Path, feeds: Mapping[str, Array], *, function: str | None = None) -> dict[str, Array]:
    """Load a package, evaluate it once, and return its outputs; a stateful model starts from zeros.

    Args:
        path: an .mlpackage.
        feeds: input name -> array.
        function: the name of the function in a package with several; its default one, or the only one, when not given.
    Raises:
        as `load` and `Program.run`.
    """
    program = load(path, function=function)
    return program.run(feeds, state=program.make_state() if program.states else None)


def _program(
    mil: Any,
    name: str,
    *,
    description: Any | None,
    version: int,
    keep_weights: bool,
    undefined_indices: UndefinedIndices,
) -> Program:
    function = mil.functions[name]
    plan = plan_function(function, opset=version, fold_constants=keep_weights)
    counts = Counter(operation.op_type for operation in _operations(function) if operation.op_type != "const")
    return Program(
        function=name,
        functions=tuple(mil.functions),
        specification_version=version,
        interface=interface_of(function, description),
        _plan=plan,
        _histogram=dict(counts.most_common()),
        _undefined_indices=undefined_indices,
    )


def _chosen(program: Any, wanted: str | None, default: str) -> str:
    names = list(program.functions)
    if wanted is not None:
        if wanted not in names:
            raise UsageError(f"the package has no function {wanted!r}; it has {names}")
        return wanted
    if default in names:
        return default
    if len(names) == 1 or "main" in names:
        return "main" if "main" in names else str(names[0])
    raise UsageError(f"the package has several functions, {names}", hint="name one with function=")


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _array(value: Any, spec: ValueSpec) -> Array:
    if isinstance(value, Tensor):
        return to_numpy(value, spec.dtype)
    return np.array(value) if isinstance(value, str) else np.array(value, dtype=numpy_dtype(spec.dtype))
