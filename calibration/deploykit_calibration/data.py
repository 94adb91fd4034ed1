"""Calibration data: whatever users have, as one stream of named batches of the size that the captured graph takes.

Accepts tensors, arrays, dicts, iterables of batches (lists, DataLoaders, generators), a callable that returns one,
an `.npz` or `.safetensors` file whose arrays are named like the inputs, and the word "synthetic". Batches are cut and
gathered along axis 0 where that is the batch axis of every input. Memory is flat: files are read in pieces.

A static graph of batch size n whose data ends with an incomplete batch gets that rest with its own samples repeated
up to n. Repeated samples change no extreme; in the histogram they weigh a little more, less than n samples' worth.

Refuses empty data, data that ends before it said it would, NaN and infinity, and what does not fit the inputs; the
message names batch (counted from 0) and tensor. Imports torch only inside functions.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import CalibrationError, DeploykitError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deploykit.capture.model import CapturedModel

    Feeds = dict[str, Tensor]

SYNTHETIC = "synthetic"
DYNAMIC_ROWS = 8  # rows per batch where the graph takes any number: enough to keep the cores busy, little memory
_FILE_ROWS = 32
_SYNTHETIC_ROWS = 16
_HINT = "pass calibration data as the model is fed in use: a list of batches, a DataLoader, or an .npz file"


@dataclass(frozen=True)
class Batch:
    """One batch that the graph can run.

    Attributes:
        feeds: by input name.
        rows: samples in it, without padding.
        first, last: the user's batches that it was made of, counted from 0.
    """

    feeds: Feeds
    rows: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"batch {self.first}" if self.first == self.last else f"batches {self.first} to {self.last}"


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

    def stream(self, captured: CapturedModel, digest: DataDigest | None = None) -> Iterator[Batch]:
        """One pass: checked, cut or gathered to the size of the graph.

        Args:
            digest: is fed every sample as it passes, in the order of the data.

        Raises:
            CalibrationError: see the module.
        """
        gatherer = Gatherer(captured)
        checked = _checked(self, captured, gatherer.by_rows)
        for index, feeds in _limited(checked, self.limit, self.one_shot, gatherer.by_rows):
            if digest is not None:
                digest.add(feeds, by_rows=gatherer.by_rows)
            yield from gatherer.add(index, feeds)
        yield from gatherer.rest()


@dataclass
class DataDigest:
    """sha256 over samples in order; the same however they were batched. `hexdigest()` is the data fingerprint."""

    _hash: Any = field(default_factory=hashlib.sha256)
    _form: str = ""

    def add(self, feeds: Feeds, *, by_rows: bool) -> None:
        """Take in one batch, sample by sample where axis 0 counts samples."""
        form = ";".join(f"{n}:{x.dtype}:{tuple(x.shape[1:] if by_rows else x.shape)}" for n, x in feeds.items())
        if form != self._form:
            self._form = form
            self._hash.update(form.encode())
        arrays = [_bytes_of(x) for x in feeds.values()]
        if not by_rows or len(arrays) == 1:
            for array in arrays:
                self._hash.update(array)
            return
        rows = len(next(iter(feeds.values())))
        for row in range(rows):
            for array in arrays:
                size = array.size // rows
                self._hash.update(array[row * size : (row + 1) * size])

    def hexdigest(self) -> str:
        """Of everything added so far."""
        return str(self._hash.hexdigest())


class Gatherer:
    """Cuts and joins batches along axis 0 to the size that the graph takes.

    `by_rows` is false where some input has no batch axis in common with the others; batches then pass as they are.
    """

    def __init__(self, captured: CapturedModel) -> None:
        self.by_rows, self._rows, self._static = _batch_axis(captured)
        self._waiting: list[tuple[int, Feeds]] = []
        self._count = 0

    def add(self, index: int, feeds: Feeds) -> Iterator[Batch]:
        """Add the user's batch `index`; yields the full batches that are now possible.

        Copies: loaders may fill the same buffer again while a batch still waits or is computed.
        """
        if not self.by_rows:
            yield Batch({name: x.clone() for name, x in feeds.items()}, _rows_of(feeds), index, index)
            return
        if self._waiting and _trailing(self._waiting[0][1]) != _trailing(feeds):
            yield from self.rest()
        at, rows = 0, _rows_of(feeds)
        while at < rows:
            take = min(rows - at, self._rows - self._count)
            self._waiting.append((index, {name: x[at : at + take].clone() for name, x in feeds.items()}))
            self._count += take
            at += take
            if self._count == self._rows:
                yield self._joined(self._count)

    def rest(self) -> Iterator[Batch]:
        """Yields what is left; a static graph gets it with its own samples repeated up to its batch size."""
        if not self._waiting:
            return
        rows, part = self._count, list(self._waiting)
        while self._static and self._count < self._rows:
            index, feeds = part[len(self._waiting) % len(part)]
            kept = {name: x[: self._rows - self._count] for name, x in feeds.items()}
            self._waiting.append((index, kept))
            self._count += _rows_of(kept)
        yield self._joined(rows)

    def _joined(self, rows: int) -> Batch:
        import torch

        parts = [feeds for _, feeds in self._waiting]
        joined = parts[0] if len(parts) == 1 else {n: torch.cat([feeds[n] for feeds in parts]) for n in parts[0]}
        indices = [index for index, _ in self._waiting]
        self._waiting, self._count = [], 0
        return Batch(joined, rows, min(indices), max(indices))


def open_data(captured: CapturedModel, data: Any, *, limit: int | None = None, seed: int = 0) -> CalibrationData:
    """Understand what the user passed as calibration data; reads nothing of it yet but a file's directory.

    Args:
        data: see the module.
        limit: use at most this many samples.
        seed: of synthetic data.

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
        return _open_file(captured, Path(data), limit)
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
    seen = -1
    for seen, batch in enumerate(_guarded(data)):
        try:
            feeds = captured.input_tree.feeds(batch, captured.inputs, any_batch=by_rows)
            _check_batch(feeds, by_rows)
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


def _guarded(data: CalibrationData) -> Iterator[Any]:
    """Iterate user code; what it raises becomes a CalibrationError that says at which batch."""
    count = 0
    try:
        for batch in data.make():
            yield batch
            count += 1
    except DeploykitError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"the calibration data failed at batch {count}: {type(error).__name__}: {error}",
            hint="iterate over it once without deploykit to see the fault",
        ) from error


def _check_batch(feeds: Feeds, by_rows: bool) -> None:
    if by_rows and len({len(x) for x in feeds.values()}) > 1:
        sizes = ", ".join(f"{name} {len(x)}" for name, x in feeds.items())
        raise CalibrationError(f"the inputs differ in their number of samples: {sizes}")
    for name, x in feeds.items():
        if x.numel() == 0:
            raise CalibrationError(f"input {name!r} is empty, shape {tuple(x.shape)}")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            what = "NaN" if bool(x.isnan().any()) else "infinity"
            first = tuple(int(i) for i in (~x.isfinite()).nonzero()[0])
            raise CalibrationError(f"input {name!r} holds {what}, first at {first}", hint="mend or drop that sample")


def _limited(
    batches: Iterator[tuple[int, Feeds]], limit: int | None, one_shot: bool, by_rows: bool
) -> Iterator[tuple[int, Feeds]]:
    """Stop after `limit` samples. An iterator that cannot be rewound must deliver as many as were asked for."""
    left = math.inf if limit is None else limit
    for index, feeds in batches:
        rows = _rows_of(feeds)
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


def _batch_axis(captured: CapturedModel) -> tuple[bool, int, bool]:
    """(whether axis 0 counts samples in every input, rows per batch, whether that number is fixed)."""
    first = [spec.shape[0] if spec.shape else None for spec in captured.inputs]
    if not first or len(set(first)) != 1 or first[0] is None:
        return False, 0, True
    return (True, DYNAMIC_ROWS, False) if isinstance(first[0], str) else (True, int(first[0]), True)


def _rows_of(feeds: Feeds) -> int:
    first = next(iter(feeds.values()))
    return len(first) if first.ndim else 1


def _trailing(feeds: Feeds) -> list[torch.Size]:
    return [x.shape[1:] for x in feeds.values()]


def _bytes_of(x: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    import torch

    return x.contiguous().reshape(-1).view(torch.uint8).numpy()


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
        rows += _rows_of(feeds)


def _like(example: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    if example.is_floating_point():
        spread = float(example.double().std(correction=0)) if example.numel() else 0.0
        spread, centre = (spread, float(example.double().mean())) if 0.0 < spread < math.inf else (1.0, 0.0)
        return (torch.randn(example.shape, generator=generator) * spread + centre).to(example.dtype)
    low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 0)
    return torch.randint(low, high + 1, example.shape, generator=generator).to(example.dtype)


def _open_file(captured: CapturedModel, path: Path, limit: int | None) -> CalibrationData:
    readers = {".npz": _npz_arrays, ".safetensors": _safetensors_arrays}
    if path.suffix not in readers:
        raise UsageError(
            f"{path}: calibration files are {' or '.join(readers)}, not {path.suffix or 'without a suffix'}",
            hint=f'save arrays named like the inputs with numpy.savez, or pass "{SYNTHETIC}" for random data',
        )
    names = [spec.name for spec in captured.inputs]
    return CalibrationData("data", lambda: _file_batches(path, readers[path.suffix], names), limit=limit)


Slicer = Callable[[int], Any]  # the next n rows, fewer or none at the end


def _file_batches(
    path: Path, reader: Callable[[Path, list[str]], dict[str, Slicer]], names: list[str]
) -> Iterator[Any]:
    try:
        arrays = reader(path, names)
        while True:
            batch = {name: take(_FILE_ROWS) for name, take in arrays.items()}
            if not any(len(x) for x in batch.values()):
                return
            yield batch
    except CalibrationError:
        raise
    except Exception as error:  # zip, npy and safetensors raise a dozen kinds
        raise CalibrationError(f"{path}: cannot read this calibration file: {error}") from error


_UNNAMED = "arr_0"  # what numpy.savez calls an array that was given no name


def _select(path: Path, have: list[str], names: list[str]) -> dict[str, str]:
    """Input name -> name in the file. An array saved without a name serves a model with one input."""
    if all(name in have for name in names):
        return {name: name for name in names}
    if len(names) == 1 and have == [_UNNAMED]:
        return {names[0]: have[0]}
    raise CalibrationError(
        f"{path}: has the arrays {', '.join(sorted(have)) or '(none)'}; the model's inputs are {', '.join(names)}",
        hint="name the arrays like the inputs: numpy.savez(path, " + ", ".join(f"{n}=..." for n in names) + ")",
    )


def _npz_arrays(path: Path, names: list[str]) -> dict[str, Slicer]:
    """Rows streamed out of the archive's members, so that a file larger than memory can be used."""
    archive = zipfile.ZipFile(path)
    members = {name.removesuffix(".npy"): name for name in archive.namelist()}
    chosen = _select(path, list(members), names)
    return {name: _npy_rows(archive, members[member]) for name, member in chosen.items()}


def _npy_rows(archive: zipfile.ZipFile, member: str) -> Slicer:
    file = archive.open(member)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise CalibrationError(f"{archive.filename}: {member} holds Python objects, which are not read")
    if not shape:
        raise CalibrationError(f"{archive.filename}: {member} is a single number; axis 0 must count samples")
    if fortran:  # rows are scattered over the file
        with archive.open(member) as whole:
            return _rows_in_memory(np.lib.format.read_array(whole, allow_pickle=False))
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    left = shape[0]

    def take(rows: int) -> Any:
        nonlocal left
        rows = min(rows, left)
        left -= rows
        content = bytearray(file.read(rows * row_bytes))
        if len(content) != rows * row_bytes:
            raise CalibrationError(f"{archive.filename}: {member} is cut short")
        return np.frombuffer(content, dtype=dtype).reshape(rows, *shape[1:])

    return take


def _rows_in_memory(array: Any) -> Slicer:
    at = 0

    def take(rows: int) -> Any:
        nonlocal at
        at += rows
        return array[at - rows : at]

    return take


def _safetensors_arrays(path: Path, names: list[str]) -> dict[str, Slicer]:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt")
    chosen = _select(path, list(file.keys()), names)
    return {name: _safetensors_rows(file.get_slice(member)) for name, member in chosen.items()}


def _safetensors_rows(stored: Any) -> Slicer:
    at, count = 0, stored.get_shape()[0]

    def take(rows: int) -> Any:
        nonlocal at
        first, at = at, min(at + rows, count)
        return stored[first:at]

    return take
