"""The first sample of calibration data, for models that do not tell their inputs: the data shows how the model is fed.

Axis 0 counts samples in a tensor, an array, a dict of them, and the batches of a PyTorch DataLoader: one sample is
taken of these. What else is iterated over gives batches of whatever form the model takes, and the first is the example
as it is. Labels behind the inputs are left aside, and what leaves a doubt gives nothing.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from deploykit.capture.inputs import forward_parameters, is_tensor
from deploykit.contract.calibration_data import guarded
from deploykit.contract.errors import CalibrationError

Inputs = dict[str, Any] | tuple[Any, ...] | None


def first_sample(module: nn.Module, data: Any) -> tuple[Inputs, Any]:
    """Example inputs from calibration data, and the data, whole again where it can be read only once.

    Args:
        module: whose `forward` names what it takes.
        data: a tensor, an array, a dict, a DataLoader, an iterable of batches, or a callable that returns one.
    Returns:
        (inputs, data): by name or by position; None where the first batch is not clearly what `forward` takes.
    Raises:
        CalibrationError: the user's code failed, or there is no batch.
    """
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return _cut(inputs_of(module, data)), data
    [batches] = guarded(lambda: [data() if callable(data) and not isinstance(data, Iterable) else data])
    if isinstance(batches, DataLoader):
        inputs = inputs_of(module, _first(guarded(lambda: _batch_of(batches))))
        return inputs if batches.batch_size is None else _cut(inputs), data
    if not isinstance(batches, Iterable):
        return None, data
    rest = guarded(lambda: batches)
    first = _first(rest)
    return inputs_of(module, first), itertools.chain([first], rest) if isinstance(data, Iterator) else data


def inputs_of(module: nn.Module, batch: Any) -> Inputs:
    """What of a batch `forward` takes, NumPy's doubles as floats; None where that is in doubt."""
    found: Inputs = pytree.tree_map_only(np.ndarray, _as_float, _meant(module, batch))
    return found


def _meant(module: nn.Module, batch: Any) -> Inputs:
    required, optional = _arguments(module)
    if isinstance(batch, Mapping):
        named = {name: batch[name] for name in (*required, *optional) if name in batch}
        return named if named and all(name in named for name in required) and _are_tensors(named.values()) else None
    if is_tensor(batch):
        return (batch,) if len(required or optional) == 1 else None
    if not isinstance(batch, tuple | list) or hasattr(batch, "_fields") or not batch:
        return None
    if not is_tensor(batch[0]):
        return _meant(module, batch[0]) if len(batch) > 1 else None  # ((x1, x2), labels) or ({...}, labels)
    has_doubt = bool(optional) and len(batch) > len(required)  # a label, or an argument that may be left out
    fits = len(batch) >= len(required) > 0 and not has_doubt and _are_tensors(batch[: len(required)])
    return tuple(batch[: len(required)]) if fits else None


def _arguments(module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of forward's arguments, those without a default and the others; none where it takes any number."""
    parameters = list((forward_parameters(module) or {}).values())
    if any(map(_is_beyond_a_batch, parameters)):
        return [], []
    named = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    required = [each.name for each in named if each.default is each.empty]
    return required, [each.name for each in named if each.name not in required]


def _is_beyond_a_batch(parameter: inspect.Parameter) -> bool:
    """`*args`, whose number nothing tells, or an argument that must be given by name."""
    return parameter.kind == parameter.VAR_POSITIONAL or (
        parameter.kind == parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    )


def _batch_of(loader: DataLoader[Any]) -> list[Any]:
    """The first batch, if any: of one sample and without workers where that can be had. PyTorch's generator is left."""
    with torch.random.fork_rng(devices=[]):
        if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
            return list(itertools.islice(loader, 1))
        is_empty = hasattr(loader.dataset, "__len__") and not len(loader.dataset)
        return [] if is_empty else [loader.collate_fn([loader.dataset[0]])]


def _first(batches: Iterator[Any]) -> Any:
    for batch in batches:
        return batch
    hint = "pass calibration data as the model is fed in use: a list of batches, a DataLoader, or an .npz file"
    raise CalibrationError("the calibration data is empty", hint=hint)


def _cut(inputs: Inputs) -> Inputs:
    """One sample, where axis 0 of all inputs counts as many."""
    if inputs is None:
        return None
    counts = {len(x) if x.ndim else 0 for x in pytree.tree_leaves(inputs)}
    cut: Inputs = inputs if len(counts) != 1 or 0 in counts else pytree.tree_map(lambda x: x[:1], inputs)
    return cut


def _as_float(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """NumPy makes doubles where nobody asked for them."""
    return x.astype(np.float32) if x.dtype == np.float64 else x


def _are_tensors(values: Iterable[Any]) -> bool:
    return all(map(is_tensor, values))
