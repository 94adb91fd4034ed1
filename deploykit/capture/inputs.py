"""The tree of a model's inputs: how arguments become flat named tensors, and how later batches are mapped to them.

Example inputs may be positional (tuple) or by name (dict) and nest tuples, lists and dicts. Values that are no tensors
(flags, numbers, None) are part of the captured program and appear in no feed. Labels that ride along in a batch are
left out; nothing is cast when that could lose information.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploykit.contract.errors import CalibrationError, UsageError
from deploykit.contract.tensors import TensorSpec

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Leaf:
    """One tensor input: its flat name, and the path to it from the arguments by name (`("inputs", 0)`)."""

    name: str
    path: Path


@dataclass(frozen=True)
class InputTree:
    """How the user's arguments map to flat names.

    Attributes:
        leaves: one per tensor, in the order of the graph's placeholders.
        arguments: names of the arguments that hold a tensor, in the order of `forward`.
    """

    leaves: tuple[Leaf, ...]
    arguments: tuple[str, ...]

    def feeds(self, batch: Any, specs: Sequence[TensorSpec], *, any_batch: bool = False) -> dict[str, Tensor]:
        """Map a batch to named flat tensors and check each against its spec.

        Args:
            batch: tensor, tuple or list (inputs first, labels after), or dict by argument or flat name.
            specs: the captured inputs, in the order of `leaves`.
            any_batch: whether axis 0 may differ from the captured size.

        Raises:
            CalibrationError: names the input that is missing or does not fit.
        """
        arguments = self._arguments_of(batch)
        feeds = {}
        for leaf, spec in zip(self.leaves, specs, strict=True):
            feeds[leaf.name] = _fitting(_lookup(arguments, leaf), spec, any_batch=any_batch)
        return feeds

    def _arguments_of(self, batch: Any) -> Mapping[str, Any]:
        """Give the parts of a batch the names of the arguments (or flat names) they are meant for."""
        if isinstance(batch, Mapping):
            return self._from_mapping(batch)
        if is_tensor(batch):
            return self._from_tensor(batch)
        if is_dataclass(batch) or hasattr(batch, "_fields"):
            named = self._from_fields(batch)
            if named is not None:
                return named
        if isinstance(batch, tuple | list):
            return self._from_sequence(batch)
        raise CalibrationError(
            f"a batch is a {type(batch).__name__}, which holds no tensors for {self._wanted()}",
            hint="yield tensors, tuples (inputs, labels), or dicts by input name",
        )

    def _from_mapping(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        known = {leaf.name for leaf in self.leaves} | set(self.arguments)
        if not known.intersection(batch) and len(self.arguments) == 1 and self.leaves[0].path[1:]:
            return {self.arguments[0]: batch}  # the model's one argument is itself a dict
        return batch

    def _from_fields(self, batch: Any) -> Mapping[str, Any] | None:
        """A dataclass or named tuple as the one argument, or as arguments by name; None where it is neither."""
        names = set(_names_in(batch))
        if len(self.arguments) == 1 and all(leaf.path[1:2] and leaf.path[1] in names for leaf in self.leaves):
            return {self.arguments[0]: batch}
        if names.intersection([*self.arguments, *(leaf.name for leaf in self.leaves)]):
            return {name: getattr(batch, name) for name in names}
        return None

    def _from_tensor(self, batch: Any) -> Mapping[str, Any]:
        if len(self.leaves) > 1:
            raise CalibrationError(f"a batch is one tensor, and the model takes {len(self.leaves)}: {self._wanted()}")
        return {self.leaves[0].name: batch}

    def _from_sequence(self, batch: Sequence[Any]) -> Mapping[str, Any]:
        if len(batch) >= len(self.arguments) and all(map(self._plausible, self.arguments, batch)):
            return dict(zip(self.arguments, batch, strict=False))
        if batch and not is_tensor(batch[0]):
            return self._arguments_of(batch[0])  # ((x1, x2), labels) or ({...}, labels)
        if len(batch) >= len(self.leaves) and all(map(is_tensor, batch[: len(self.leaves)])):
            return {leaf.name: part for leaf, part in zip(self.leaves, batch, strict=False)}
        raise CalibrationError(
            f"a batch is a {type(batch).__name__} of {len(batch)}, and the model takes {self._wanted()}",
            hint="yield one item per input in this order, or dicts by input name",
        )

    def _plausible(self, argument: str, part: Any) -> bool:
        """Whether a part has the form of an argument: a tensor for a tensor, a container for a container."""
        nested = any(leaf.path[0] == argument and len(leaf.path) > 1 for leaf in self.leaves)
        return nested != is_tensor(part)

    def _wanted(self) -> str:
        return ", ".join(leaf.name for leaf in self.leaves)


def flatten_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Sequence[str]
) -> list[tuple[Leaf, Any]]:
    """Flatten example arguments in the order of torch.export, with a name for every leaf (tensor or not).

    Args:
        parameters: positional parameter names of `forward`; a last `*name` stands for any number.
    """
    leaves, _ = pytree.tree_flatten_with_path((args, dict(kwargs)))
    result: list[tuple[Leaf, Any]] = []
    taken: set[str] = set()
    for key_path, value in leaves:
        first, second, *rest = (key_of(key) for key in key_path)
        path: Path = (*_argument_path(int(second), parameters), *rest) if first == 0 else (str(second), *rest)
        name = unique_name("_".join(map(str, path)), taken)
        result.append((Leaf(name, path), value))
    return result


def register_dataclasses(value: Any) -> None:
    """Let PyTorch look into every dataclass in a tree of arguments or outputs, as torch.export wants it.

    The classes are registered for the process, once; those with a registration of their own keep it.
    """
    if type(value) in pytree.SUPPORTED_NODES:
        children = list(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0])
    elif isinstance(value, tuple):
        children = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        try:
            torch.export.register_dataclass(type(value), serialized_type_name=_qualified(type(value)))
        except Exception as e:
            raise UsageError(
                f"PyTorch cannot look into the dataclass {type(value).__name__}: {e}",
                hint="give the model tuples or dicts of tensors",
            ) from e
        children = [getattr(value, each.name) for each in fields(value)]
    else:
        return
    for child in children:
        register_dataclasses(child)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}.{id(kind)}"


def tree_of(flat: Sequence[tuple[Leaf, Any]]) -> InputTree:
    """The tree of the leaves that are tensors."""
    leaves = tuple(leaf for leaf, value in flat if isinstance(value, Tensor))
    return InputTree(leaves, tuple(dict.fromkeys(str(leaf.path[0]) for leaf in leaves)))


def unique_name(text: str, taken: set[str]) -> str:
    """Turn text into a Python identifier not yet in `taken`, and add it there."""
    name = re.sub(r"\W", "_", text)
    name = f"input_{name}" if not name or name[0].isdigit() else name
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def key_of(key: Any) -> str | int:
    """The plain key behind one step of a pytree path."""
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            found = getattr(key, attribute)
            return found if isinstance(found, int) else str(found)
    return str(key)


def split_feeds(feeds: dict[str, Tensor], specs: Sequence[TensorSpec]) -> Iterator[dict[str, Tensor]]:
    """Cut feeds along axis 0 into pieces of the captured batch size; one piece where that axis is dynamic.

    Raises:
        CalibrationError: the inputs disagree on the batch size, or it is no multiple of the captured one.
    """
    fixed = {s.name: s.shape[0] for s in specs if s.shape and isinstance(s.shape[0], int)}
    pieces = {name: feeds[name].shape[0] / size for name, size in fixed.items() if size}
    if not pieces or set(pieces.values()) == {1.0}:
        yield feeds
        return
    count = next(iter(pieces.values()))
    if len(set(pieces.values())) > 1 or count != int(count) or len(fixed) < len([s for s in specs if s.shape]):
        sizes = ", ".join(f"{name} {feeds[name].shape[0]} (captured with {size})" for name, size in fixed.items())
        raise CalibrationError(
            f"a batch cannot be cut into pieces of the captured batch size: {sizes}",
            hint="use a batch size that is a multiple of it (drop_last=True), or capture with dynamic_batch=True",
        )
    for index in range(int(count)):
        yield {
            name: x[index * (size := int(fixed[name])) : (index + 1) * size] if name in fixed else x
            for name, x in feeds.items()
        }


def _argument_path(index: int, parameters: Sequence[str]) -> Path:
    if parameters and parameters[-1].startswith("*") and index >= len(parameters) - 1:
        return (parameters[-1][1:], index - len(parameters) + 1)
    return (parameters[index],) if index < len(parameters) else (f"input_{index}",)


def _lookup(arguments: Mapping[str, Any], leaf: Leaf) -> Any:
    if leaf.name in arguments and is_tensor(arguments[leaf.name]):
        return arguments[leaf.name]
    found: Any = arguments
    for step in leaf.path:
        try:
            found = _child(found, step)
        except (KeyError, IndexError, TypeError, AttributeError) as e:
            got = ", ".join(map(str, arguments)) or "nothing"
            hint = f"give a batch as the model is called, or a dict with {leaf.name!r}"
            raise CalibrationError(f"a batch has no input {leaf.name!r}; it has {got}", hint=hint) from e
    return found


def _child(value: Any, step: str | int) -> Any:
    """What one step of a path leads to: a field of a dataclass or named tuple, else an item."""
    if isinstance(step, str) and not isinstance(value, Mapping):
        return getattr(value, step)
    return value[step]


def _names_in(value: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass or a named tuple."""
    return tuple(value._fields) if hasattr(value, "_fields") else tuple(each.name for each in fields(value))


def forward_parameters(module: nn.Module) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of `forward`, by name; None where it has no signature."""
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return None


def is_tensor(value: Any) -> bool:
    """Whether something is a tensor or an array."""
    return isinstance(value, Tensor | np.ndarray)


def _fitting(value: Any, spec: TensorSpec, *, any_batch: bool) -> Tensor:
    """Check one value against its spec; a detached CPU tensor of the spec's dtype."""
    if not is_tensor(value):
        raise CalibrationError(f"input {spec.name!r} must be a tensor, not {type(value).__name__}")
    if isinstance(value, Tensor) and unreadable(value):
        message = f"input {spec.name!r} is {unreadable(value)}, and plain values are expected"
        raise CalibrationError(message, hint="pass dense tensors that hold values, such as x.to_dense()")
    tensor = (_from_numpy(value, spec) if isinstance(value, np.ndarray) else value).detach().cpu()
    wanted = getattr(torch, spec.dtype)
    if tensor.dtype != wanted:
        if not _safe_cast(tensor, wanted):
            raise CalibrationError(
                f"input {spec.name!r} has dtype {str(tensor.dtype).removeprefix('torch.')}; {spec.dtype} is expected",
                hint="prepare the data as the model is fed in use (scaling and dtype included)",
            )
        tensor = tensor.to(wanted)
    shape = tuple(tensor.shape)
    if any_batch and shape and spec.shape:
        shape = (spec.shape[0] if isinstance(spec.shape[0], int) else shape[0], *shape[1:])
    if not spec.accepts(shape):
        raise CalibrationError(
            f"input {spec.name!r} has shape {tuple(tensor.shape)}; {spec} is expected",
            hint="give data shaped like example_inputs; an axis that varies needs dynamic_batch= or dynamic_shapes=",
        )
    return tensor


def unreadable(value: Tensor) -> str:
    """What a tensor is whose values cannot be read as an array; "" for any other."""
    if value.is_meta:
        return "a tensor on the device `meta`, which holds no values"
    if value.is_nested:
        return "a nested tensor"
    if value.is_quantized:
        return "a tensor of PyTorch's quantized types"
    return "" if value.layout == torch.strided else f"a tensor of the layout {value.layout}"


def _from_numpy(value: np.ndarray[Any, Any], spec: TensorSpec) -> Tensor:
    """An array as a tensor; copied only where PyTorch cannot view the memory (read-only, or of negative strides)."""
    try:
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    except TypeError as e:
        raise CalibrationError(f"input {spec.name!r} is an array of {value.dtype}; {spec.dtype} is expected") from e


def _safe_cast(have: Tensor, want: torch.dtype) -> bool:
    """Floats may change width, integers and truth values where every value stays what it is.

    An integer never becomes a float behind the user's back: whether it is to be scaled, only the user knows.
    """
    if have.is_floating_point() or want.is_floating_point:
        return have.is_floating_point() and want.is_floating_point
    if have.is_complex() or want.is_complex or not have.numel():
        return have.is_complex() == want.is_complex
    low, high = (0, 1) if want == torch.bool else (torch.iinfo(want).min, torch.iinfo(want).max)
    values = have.numpy()
    return low <= int(values.min()) and int(values.max()) <= high
