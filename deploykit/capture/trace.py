"""From a source to a traced program with everything the graph alone does not say: names, reference outputs, axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploykit.capture.borrowed import as_cpu_float32, borrowed
from deploykit.capture.dynamic import Axes, axes_of, batch_axes, dim_of, doubled
from deploykit.capture.failures import Place, first_line, translated
from deploykit.capture.inputs import Leaf, flatten_inputs, key_of, register_dataclasses, unique_name, unreadable
from deploykit.capture.sources import Source
from deploykit.capture.transforms import UNTRACED, clean_stack, mapped_to_the_front
from deploykit.contract.errors import CaptureError, UsageError
from deploykit.contract.quiet import quiet, silent

Reference = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Traced:
    """A traced program.

    Attributes:
        flat: every input leaf with its example value, tensors and others, in the order of the program's inputs.
        axes: {flat name: {axis: what the user asked}} for the dynamic axes; empty for a program made elsewhere.
        references: pairs of flat tensor inputs and the model's own tensor outputs.
        output_names: one per output leaf, tensors and others.
    """

    program: ExportedProgram
    flat: tuple[tuple[Leaf, Any], ...]
    axes: Mapping[str, Axes]
    references: tuple[Reference, ...]
    output_names: tuple[str, ...]

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """The example inputs that are tensors."""
        return tuple(x for _, x in self.flat if isinstance(x, Tensor))


def trace_module(source: Source, *, dynamic_batch: bool, dynamic_shapes: Any) -> Traced:
    """Trace a module with torch.export, in eval mode on the CPU in float32, leaving the user's module untouched.

    Raises:
        UsageError: the module fails on its own example inputs, or dynamic axes do not fit them.
        CaptureError: it cannot be copied to the CPU in float32, or traced.
    """
    assert isinstance(source.model, nn.Module)
    module = _plain_module(source.model)
    cast = module is not source.model
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: _plain_tensor(x, cast=cast), (source.args, source.kwargs))
    flat = flatten_inputs(args, kwargs, source.parameters)
    if not any(isinstance(x, Tensor) for _, x in flat):
        raise UsageError("example_inputs holds no tensor", hint="pass at least one tensor input")
    axes: dict[str, dict[int, Any]] = {}
    if dynamic_batch:
        axes = batch_axes(flat)
    elif dynamic_shapes is not None:
        axes = axes_of(flat, dynamic_shapes, source.parameters)
    structure = pytree.tree_structure((args, kwargs))
    tracing = [doubled(x, axes.get(leaf.name, {})) if isinstance(x, Tensor) else x for leaf, x in flat]
    with quiet(), borrowed(module):
        references: list[Reference] = []
        names: tuple[str, ...] = ()
        for leaves in ([x for _, x in flat], tracing) if any(axes.values()) else ([x for _, x in flat],):
            outputs, names = _run(module, leaves, structure)
            references.append((tuple(x for x in leaves if isinstance(x, Tensor)), outputs))
        shapes = _shapes(flat, axes, structure, source.parameters)
        program = _export(module, lambda: pytree.tree_unflatten(_copies(tracing), structure), shapes)
    return Traced(program, tuple(flat), axes, tuple(references), names)


def _export(module: nn.Module, call: Callable[[], Any], shapes: dict[str, Any] | None) -> ExportedProgram:
    """torch.export by running the module; by reading its bytecode where it maps functions that running cannot trace."""
    try:
        with translated(module), silent(), clean_stack(), mapped_to_the_front():
            args, kwargs = call()
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except CaptureError as e:
        if not any(words in str(e.__cause__) for words in UNTRACED):
            raise
        try:
            with silent(), clean_stack():
                args, kwargs = call()
                return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=True)
        except Exception:
            raise e from e.__cause__


def trace_program(source: Source, *, dynamic: bool) -> Traced:
    """Take a program that was exported elsewhere; its dynamic axes are kept.

    Raises:
        UsageError: dynamic axes are asked of it now, or its weights are not float32 on the CPU.
    """
    program = source.model
    assert isinstance(program, ExportedProgram)
    if dynamic:
        raise UsageError(
            "the axes of an ExportedProgram are fixed when it is exported",
            hint="pass the module instead, or export it with dynamic_shapes",
        )
    odd = [n for n, x in program.state_dict.items() if x.is_floating_point() and (x.dtype, x.device.type) != _PLAIN]
    if odd:
        raise UsageError(f"the ExportedProgram holds {odd[0]!r} not as float32 on the CPU", hint="export it so")
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: _plain_tensor(x, cast=False), (source.args, source.kwargs))
    flat = flatten_inputs(args, kwargs, source.parameters)
    with quiet(), torch.no_grad():
        outputs, names = _run(program.module(), [x for _, x in flat], pytree.tree_structure((args, kwargs)))
    tensors = tuple(x for _, x in flat if isinstance(x, Tensor))
    return Traced(program, tuple(flat), {}, ((tensors, outputs),), names)


_PLAIN = (torch.float32, "cpu")


def _plain_module(module: nn.Module) -> nn.Module:
    try:
        return as_cpu_float32(module)
    except Exception as e:
        raise CaptureError(
            f"{type(module).__name__} is not in float32 on the CPU and cannot be copied there: {first_line(e)}",
            hint="pass model.cpu().float() yourself",
        ) from e


def _plain_tensor(tensor: Tensor, *, cast: bool) -> Tensor:
    """A detached CPU copy; float32 if the model was cast, or where half precision was given.

    Raises:
        UsageError: its values cannot be read, or it has no sample: nothing can be traced, cut or gathered by it.
    """
    odd = unreadable(tensor) or ("an empty batch" if tensor.ndim and not len(tensor) else "")
    if odd:
        message = f"an example input of shape {tuple(tensor.shape)} is {odd}, and plain values are expected"
        raise UsageError(message, hint="pass dense tensors with one sample or more")
    plain = tensor.detach().cpu().clone()
    halves = (torch.float16, torch.bfloat16)
    return plain.float() if plain.is_floating_point() and (cast or plain.dtype in halves) else plain


def _copies(leaves: Sequence[Any]) -> list[Any]:
    return [x.clone() if isinstance(x, Tensor) else x for x in leaves]


def _run(
    module: nn.Module, leaves: Sequence[Any], structure: pytree.TreeSpec
) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """Run the model itself on copies of its inputs; its tensor outputs, and the names of all of them.

    Raises:
        UsageError: the model raises on its example inputs.
    """
    args, kwargs = pytree.tree_unflatten(_copies(leaves), structure)
    try:
        outputs = module(*args, **kwargs)
    except Exception as e:
        raise UsageError(
            f"the model fails on its own example inputs{Place.of(e, module)}: {first_line(e)}",
            hint="check number, shapes and dtypes of example_inputs against forward",
        ) from e
    register_dataclasses(outputs)
    pairs, _ = pytree.tree_flatten_with_path(outputs)
    taken: set[str] = set()
    names = tuple(unique_name(_output_name([key_of(key) for key in path]), taken) for path, _ in pairs)
    return tuple(x.detach().clone() for _, x in pairs if isinstance(x, Tensor)), names


def _output_name(keys: list[str | int]) -> str:
    """`output`, `output_0`, or the keys themselves joined with `_`."""
    return "_".join(map(str, keys if keys and isinstance(keys[0], str) else ["output", *keys]))


def _shapes(
    flat: Sequence[tuple[Leaf, Any]], axes: Mapping[str, Axes], structure: pytree.TreeSpec, parameters: Sequence[str]
) -> dict[str, Any] | None:
    """torch.export's dynamic_shapes for these axes: a dict by argument, in the structure of the inputs."""
    if not any(axes.values()):
        return None
    dims = [{axis: dim_of(asked) for axis, asked in axes.get(leaf.name, {}).items()} or None for leaf, _ in flat]
    args, kwargs = pytree.tree_unflatten(dims, structure)
    shapes: dict[str, Any] = {}
    for index, shape in enumerate(args):
        if parameters[min(index, len(parameters) - 1)].startswith("*"):
            shapes[parameters[-1][1:]] = tuple(args[len(parameters) - 1 :])
            break
        shapes[parameters[index]] = shape
    return {**shapes, **kwargs}
