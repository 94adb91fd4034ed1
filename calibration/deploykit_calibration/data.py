"""Calibration data: whatever users have, as one stream of named batches of the size that the captured graph takes.

Accepts tensors, arrays, dicts, iterables of batches (lists, DataLoaders, generators), a callable that returns one,
an `.npz` or `.safetensors` file whose arrays are named like the inputs, and the word "synthetic". Batches are cut and
gathered along axis 0 where that is the batch axis of every input. Memory is flat: files are read in pieces.

Refuses empty data, data that ends before it said it would, NaN and infinity (but for the -inf of a mask), and what does
not fit the inputs; the message names batch (counted from 0) and tensor. Imports torch only inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract.calibration_data import guarded
from deploykit.contract.errors import CalibrationError, UsageError
from deploykit_calibration.batching import Batch, DataDigest, Gatherer, rows_of
from deploykit_calibration.data_files import open_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deploykit.capture.model import CapturedModel
    from deploykit_calibration.held_out import Holdout

    Feeds = dict[str, Tensor]

SYNTHETIC = "synthetic"
_SYNTHETIC_ROWS = 16
_HINT = "pass calibration data as the model is fed in use: a list of batches, a DataLoader, or an .npz file"


@dataclass(frozen=True)
class CalibrationData:
    """Where batches come from.

    Attributes:
        source: "data" or "synthetic".
        make: begins a pass over the user's batches.
        one_shot: only one pass is possible.
        length: number of the user's batches, where they can tell.
        limit: stop after this many samples.
    """

    source: str
    make: Callable[[], Iterator[Any]]
    one_shot: bool = False
    length: int | None = None
    limit: int | None = None

    def stream(
        self, captured: CapturedModel, digest: DataDigest | None = None, holdout: Holdout | None = None
    ) -> Iterator[Batch]:
        """One pass: checked, cut or gathered to the size of the graph.

        Args:
            digest: is fed every sample as it passes, in the order of the data.
            holdout: takes the samples that shall not be observed; these are not passed on, nor digested.

        Raises:
            CalibrationError: see the module.
        """
        gatherer = Gatherer(captured)
        checked = _checked(self, captured, gatherer.by_rows)
        limited = _limited(checked, self.limit, self.one_shot, gatherer.by_rows)
        for index, feeds in limited if holdout is None else holdout.observed(limited):
            if digest is not None:
                digest.add(feeds, by_rows=gatherer.by_rows)
            yield from gatherer.add(index, feeds)
        yield from gatherer.rest()


def open_data(captured: CapturedModel, data: Any, *, limit: int | None = None, seed: int = 0) -> CalibrationData:
    """Understand what the user passed as calibration data; reads nothing of it yet but a file's directory.

    Args:
        data: see the module.
        limit: use at most this many samples.
        seed: the seed of synthetic data.

    Raises:
        UsageError: this is no form of calibration data, or the limit is not positive.
        CalibrationError: there is none, or the file cannot be read.
    """
    import torch

    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} leaves no calibration samples", hint="a positive number, or None for all")
    if data is None:
        raise CalibrationError("static quantization needs calibration data", hint=f'{_HINT}; or "{SYNTHETIC}"')
    if isinstance(data, str) and data == SYNTHETIC:
        return CalibrationData(SYNTHETIC, lambda: _synthetic(captured, seed, limit), limit=limit)
    if isinstance(data, str | Path):
        names = [spec.name for spec in captured.inputs]
        return CalibrationData("data", open_file(Path(data), names), limit=limit)
    if isinstance(data, torch.Tensor | np.ndarray | Mapping):
        return CalibrationData("data", lambda: iter([data]), length=1, limit=limit)
    if isinstance(data, Iterable):
        return CalibrationData("data", lambda: iter(data), iter(data) is data, _length_of(data), limit)
    if callable(data):
        return CalibrationData("data", lambda: _from_factory(data), limit=limit)
    raise UsageError(f"{type(data).__name__} is no form of calibration data", hint=_HINT)


def _from_factory(factory: Callable[[], Any]) -> Iterator[Any]:
    made = factory()
    if not isinstance(made, Iterable):
        raise UsageError(f"the calibration callable returned {type(made).__name__}, not an iterable of batches")
    return iter(made)


def _length_of(data: Iterable[Any]) -> int | None:
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def _checked(data: CalibrationData, captured: CapturedModel, by_rows: bool) -> Iterator[tuple[int, Feeds]]:
    """The user's batches as feeds; errors of theirs and ours say which batch."""
    from deploykit_calibration.graph_view import masking_inputs

    seen, masks = -1, masking_inputs(captured)
    for seen, batch in enumerate(guarded(data.make)):
        try:
            feeds = captured.input_tree.feeds(batch, captured.inputs, any_batch=by_rows)
            _check_batch(feeds, by_rows, masks)
        except CalibrationError as error:
            raise CalibrationError(f"calibration batch {seen}: {error.message}", hint=error.hint) from error
        yield seen, feeds
    if seen < 0:
        exhausted = "; a one-shot iterator that was used before is empty" if data.one_shot else ""
        raise CalibrationError(
            f"the calibration data is empty{exhausted}", hint=f"{_HINT}, or a callable that makes one"
        )
    if data.length is not None and seen + 1 < data.length:
        raise CalibrationError(
            f"the calibration data said it has {data.length} batches and ended after {seen + 1}",
            hint="check the loader; pass a generator function if the length is not known",
        )


def _check_batch(feeds: Feeds, by_rows: bool, masks: Collection[str]) -> None:
    if by_rows and len({len(x) for x in feeds.values()}) > 1:
        sizes = ", ".join(f"{name} {len(x)}" for name, x in feeds.items())
        raise CalibrationError(f"the inputs differ in their number of samples: {sizes}")
    for name, x in feeds.items():
        if x.numel() == 0:
            raise CalibrationError(f"input {name!r} is empty, shape {tuple(x.shape)}")
        bad = ~(x.isfinite() | x.isneginf()) if name in masks else ~x.isfinite()
        if bool(bad.any()):
            what = "NaN" if bool(x.isnan().any()) else "infinity"
            first = tuple(int(i) for i in bad.nonzero()[0])
            raise CalibrationError(f"input {name!r} holds {what}, first at {first}", hint="mend or drop that sample")


def _limited(
    batches: Iterator[tuple[int, Feeds]], limit: int | None, one_shot: bool, by_rows: bool
) -> Iterator[tuple[int, Feeds]]:
    """Stop after `limit` samples. An iterator that cannot be rewound must deliver as many as were asked for."""
    left = math.inf if limit is None else limit
    for index, feeds in batches:
        rows = rows_of(feeds)
        cut = rows > left and by_rows
        yield index, {name: x[: int(left)] for name, x in feeds.items()} if cut else feeds
        left -= rows
        if left <= 0:
            return
    if limit is not None and one_shot:
        raise CalibrationError(
            f"the one-shot iterator ended after {limit - int(left)} of the {limit} samples asked for",
            hint="it may have been used before: pass a list or a callable that makes a new one, or a lower limit",
        )


def _synthetic(captured: CapturedModel, seed: int, limit: int | None) -> Iterator[Feeds]:
    """Random batches shaped like the examples: floats with their mean and deviation, integers from their range."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows, samples = 0, limit or _SYNTHETIC_ROWS
    while rows < samples:
        feeds = {
            spec.name: _like(example, generator)
            for spec, example in zip(captured.inputs, captured.example_inputs, strict=True)
        }
        yield feeds
        rows += rows_of(feeds)


def _like(example: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    if example.is_floating_point():
        spread = float(example.double().std(correction=0)) if example.numel() else 0.0
        spread, centre = (spread, float(example.double().mean())) if 0.0 < spread < math.inf else (1.0, 0.0)
        return (torch.randn(example.shape, generator=generator) * spread + centre).to(example.dtype)
    values = example.numpy()  # PyTorch finds no extremes of uint16
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return torch.randint(low, high + 1, example.shape, generator=generator).to(example.dtype)
