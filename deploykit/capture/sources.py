"""What users pass as a model, and the inputs and calibration data that the model itself can tell.

A module, a LightningModule, a `torch.export.ExportedProgram`, or `"package.module:factory"`. Lightning and Hugging
Face are recognised by what they offer (`example_input_array`, `dummy_inputs`), never imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploykit.capture.example_file import first_rows
from deploykit.capture.factories import made_by
from deploykit.capture.first_sample import first_sample
from deploykit.capture.inputs import forward_parameters, register_dataclasses
from deploykit.contract.errors import CalibrationError, UsageError


@dataclass(frozen=True)
class Source:
    """A model with its example inputs.

    Attributes:
        model: a module, or a program that somebody exported.
        args, kwargs: example inputs, positional and by name, as `forward` is called.
        parameters: positional parameter names of `forward`; a last `*name` takes any number.
        dummies: the inputs are those that a Hugging Face model makes up for itself; nobody chose their sizes.
    """

    model: nn.Module | ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parameters: tuple[str, ...]
    dummies: bool = False


def resolve(model: Any, example_inputs: Any = None) -> Source:
    """Find the module (or program) behind what the user passed, and its example inputs.

    Args:
        model: nn.Module, ExportedProgram or `"package.module:factory"`.
        example_inputs: tuple (positional), dict (by name) or one tensor; None asks the model.

    Raises:
        UsageError: not a model, a factory that cannot be found, or no example inputs anywhere.
    """
    found, offered = load_model(model)
    busy = getattr(getattr(found, "forward", None), "not_for_capture", None)
    if busy is not None:
        raise UsageError(str(busy), hint="export what deploykit.qat gave: trained.export(...)")
    example_inputs = offered if example_inputs is None else example_inputs
    if isinstance(found, ExportedProgram):
        return _from_program(found, example_inputs)
    dummies = example_inputs is None and getattr(found, "example_input_array", None) is None
    if example_inputs is None:
        example_inputs = _own_inputs(found)
    parameters = _parameters(found)
    if example_inputs is None:
        names = f" ({', '.join(parameters)})" if parameters else ""
        raise UsageError(
            f"{type(found).__name__} does not tell its inputs",
            hint=f"pass example_inputs=: a tuple of tensors for forward's arguments{names}, or a dict by name;"
            " a factory may return (model, example_inputs), and batches of calibration data tell them, too, where each"
            " is just these arguments (and labels)",
        )
    args, kwargs = _as_call(example_inputs)
    kwargs = _checked_names(found, kwargs)
    return Source(found, args, kwargs, parameters, dummies=dummies)


def load_model(model: Any) -> tuple[nn.Module | ExportedProgram, Any]:
    """Resolve a factory string and check the type; returns the model and the factory's example inputs (or None).

    Raises:
        UsageError: the factory cannot be imported or called, or the result is no model.
    """
    example_inputs, factory = None, model if isinstance(model, str) else None
    if isinstance(model, str):
        model = made_by(model)
        if isinstance(model, tuple) and len(model) == 2:
            model, example_inputs = model
    model = _unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise UsageError(
            f"the model is TorchScript ({type(model).__name__}), which has no Python code to trace",
            hint="pass the nn.Module that it was made of, with its weights loaded",
        )
    if isinstance(model, nn.Module | ExportedProgram):
        return model, example_inputs
    if factory is not None:
        got = "None" if model is None else f"an object of type {type(model).__name__}"
        raise UsageError(
            f"{factory!r} gives {got}, and no model",
            hint="let the function return an nn.Module, or the tuple (model, example_inputs)",
        )
    raise UsageError(
        f"the model is of type {type(model).__name__}",
        hint='pass an nn.Module, a LightningModule, a torch.export.ExportedProgram or "package.module:factory"',
    )


def _unwrapped(model: Any) -> Any:
    """The module inside wrappers that only change how it runs or trains; module paths are those of the module."""
    while isinstance(model, nn.Module):
        inner = next((getattr(model, name) for kind, name in _WRAPPERS if _is_a(model, kind)), None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
    return model


def _is_a(model: nn.Module, kind: str) -> bool:
    """Whether a class of this name of PyTorch's own is among a module's classes; nothing is imported for it."""
    return any(base.__name__ == kind and base.__module__.startswith("torch.") for base in type(model).__mro__)


_WRAPPERS = (
    ("OptimizedModule", "_orig_mod"),
    ("DataParallel", "module"),
    ("DistributedDataParallel", "module"),
    ("FullyShardedDataParallel", "module"),
    ("AveragedModel", "module"),
)
"""Class of torch -> attribute that holds the module it wraps."""


def open_model(model: Any, example_inputs: Any, data: Any) -> tuple[nn.Module | ExportedProgram, Any, Any]:
    """Resolve what the user passed, each once: a factory may be slow, or random.

    Args:
        model: anything `load_model` takes.
        example_inputs: as the user gave them; None takes the factory's, else the first sample of the data.
        data: calibration data; None takes the model's own, where it has some.

    Returns:
        (model, example inputs or None, data or None); an iterator that can be read once comes back as another.

    Raises:
        UsageError: see `load_model`.
        CalibrationError: the data file is missing or damaged, the data is empty, or the user's loader failed.
    """
    found, offered = load_model(model)
    data = calibration_source(found) if data is None else data
    inputs = offered if example_inputs is None else example_inputs
    if inputs is not None or data is None or isinstance(found, ExportedProgram) or _own_inputs(found) is not None:
        return found, inputs, data
    if isinstance(data, str | Path):
        return found, None if data == "synthetic" else _inputs_from_file(found, Path(data)), data
    inputs, data = first_sample(found, data)
    return found, inputs, data


def _inputs_from_file(model: nn.Module, path: Path) -> dict[str, Tensor] | tuple[Tensor, ...] | None:
    """The first sample of a file with arrays named like forward's arguments; the only array may have any name.

    None where the file's names do not fit.
    """
    rows = first_rows(path)
    named = {name: rows[name] for name in _parameters(model) if name in rows}
    return named or (tuple(rows.values()) if len(rows) == 1 else None)


def calibration_source(model: Any) -> Any:
    """The model's own calibration data: its `calibration_dataloader()`, else its `val_dataloader()`, else None.

    Args:
        model: anything `resolve` takes; a Lightning data module attached to its trainer is asked too.

    Raises:
        CalibrationError: the model has such a method and it failed.
    """
    found, _ = load_model(model)
    trainer = getattr(found, "__dict__", {}).get("_trainer")
    for owner in (found, getattr(trainer, "datamodule", None)):
        for name in ("calibration_dataloader", "val_dataloader"):
            method = getattr(owner, name, None)
            if callable(method) and not _is_placeholder(method):
                return _call_loader(method, f"{type(owner).__name__}.{name}()")
    return None


def _is_placeholder(method: Any) -> bool:
    """Whether a method is the one of Lightning's base class, which only raises."""
    return str(getattr(method, "__module__", "")).startswith(("lightning.", "pytorch_lightning."))


def _call_loader(method: Any, name: str) -> Any:
    try:
        loader = method()
    except Exception as e:
        raise CalibrationError(
            f"{name} failed: {type(e).__name__}: {e}", hint="pass calibration= yourself, or call setup() first"
        ) from e
    several = isinstance(loader, list | tuple) and loader and hasattr(loader[0], "dataset")
    return loader[0] if several else loader


def _from_program(program: ExportedProgram, example_inputs: Any) -> Source:
    if example_inputs is not None:
        args, kwargs = _as_call(example_inputs)
    elif program.example_inputs is not None:
        args, kwargs = tuple(program.example_inputs[0]), dict(program.example_inputs[1])
    else:
        raise UsageError("the ExportedProgram keeps no example inputs", hint="pass example_inputs=")
    names = [str(spec.arg.name) for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    flat_positional = all(isinstance(x, Tensor) or not pytree.tree_is_leaf(x) for x in args)
    parameters = names[: len(args)] if flat_positional and len(names) == len(args) + len(kwargs) else []
    return Source(program, args, kwargs, tuple(parameters))


def _own_inputs(module: nn.Module) -> Any:
    """Inputs that Lightning (`example_input_array`) or Hugging Face (`dummy_inputs`) models carry."""
    own = getattr(module, "example_input_array", None)
    if own is not None:
        return own
    dummy = getattr(module, "dummy_inputs", None)
    names = set(_parameters(module))
    if isinstance(dummy, Mapping) and getattr(module, "main_input_name", next(iter(dummy), None)) in dummy:
        return {name: value for name, value in dummy.items() if not names or name in names}
    return None


def _parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of forward's positional parameters; `*args` as a last `*args`. Empty where it has no signature."""
    names = []
    for parameter in (forward_parameters(module) or {}).values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind == parameter.VAR_POSITIONAL:
            names.append(f"*{parameter.name}")
    return tuple(names)


def _as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as (args, kwargs), NumPy arrays as tensors; a dataclass or named tuple is one argument."""
    register_dataclasses(example_inputs)
    example_inputs = pytree.tree_map_only(np.ndarray, torch.from_numpy, example_inputs)
    if hasattr(example_inputs, "_fields") or is_dataclass(example_inputs):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    raise UsageError(
        f"example_inputs is a {type(example_inputs).__name__}", hint="pass a tuple (positional) or a dict (by name)"
    )


def _checked_names(module: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Inputs by name in forward's order; names that forward lacks are an error."""
    parameters = forward_parameters(module)
    if parameters is None:
        return kwargs
    if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        known = {name: kwargs[name] for name in parameters if name in kwargs}
        return {**known, **kwargs}
    unknown = [name for name in kwargs if name not in parameters]
    if unknown:
        raise UsageError(
            f"forward of {type(module).__name__} has no argument {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(parameters)}",
            hint="give example_inputs by these names; for a forward that takes one dict, pass a tuple ({...},)",
        )
    return {name: kwargs[name] for name in parameters if name in kwargs}
