"""`CalibrationTable`: the statistics of every captured tensor, as a value that can be merged, saved and asked.

A table is asked for any scheme's ranges afterwards; nothing of a target or precision is in it. On disk it is one
safetensors file (no pickle) with a JSON header; equal tables give equal bytes, and a file appears complete or not
at all. Loading refuses damaged files, files of a newer schema, and files that are something else.

Never imports torch.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact.storage import write_file
from deploykit.contract.arguments import path as path_of
from deploykit.contract.errors import CalibrationError
from deploykit.contract.reading import MAX_ARRAY_BYTES, MAX_JSON_BYTES, convert, decode_json, open_regular, read_bytes
from deploykit_calibration.channel_sums import ChannelSums
from deploykit_calibration.ranges import Range, choose_range, given_range
from deploykit_calibration.sample_extremes import KEPT, SampleExtremes
from deploykit_calibration.statistics import BINS, TensorStatistics
from deploykit_calibration.unseen import widened

SCHEMA_VERSION = 3  # 1 had no layer_inputs, 2 no extremes of single samples
SUFFIX = ".calibration"
_HEADER = "deploykit_calibration"
_MAX_ROWS = 100_000
_SAMPLES_LIMIT = 1 << 62
_SOURCES = ("data", "synthetic")
_FINGERPRINT = re.compile("[0-9a-f]{64}")
_FINGERPRINT_MODULUS = 1 << 256

Arrays = dict[str, NDArray[Any]]
_Value = TypeVar("_Value", TensorStatistics, ChannelSums)


@dataclass(frozen=True)
class CalibrationTable:
    """Statistics of the tensors of one captured model over some data.

    Attributes:
        model_fingerprint: the fingerprint of the `CapturedModel` that was observed.
        data_fingerprint: sum modulo 2**256 of the sha256 of each stream of samples, so that merging commutes.
        samples: how many samples were seen (rows of the batch axis, without padding).
        source: "data", or "synthetic" as soon as any part of it is random numbers.
        statistics: the statistics, by FX node name.
        layer_inputs: sums of the input channels of convolutions and linear layers, by the layer's node name.
        from_cache: whether `calibrate` found this table in its cache; not saved, not compared.
    """

    model_fingerprint: str
    data_fingerprint: str = "0" * 64
    samples: int = 0
    source: str = "data"
    statistics: Mapping[str, TensorStatistics] = field(default_factory=dict)
    layer_inputs: Mapping[str, ChannelSums] = field(default_factory=dict)
    from_cache: bool = field(default=False, compare=False)
    _chosen: dict[tuple[str, str, bool, int], Range] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for what no calibration can have given."""
        if type(self.samples) is not int or not 0 <= self.samples < _SAMPLES_LIMIT:
            raise ValueError(f"{self.samples} samples are not from 0 to 2**62")
        if self.source not in _SOURCES or not _FINGERPRINT.fullmatch(self.data_fingerprint):
            raise ValueError(f"source {self.source!r} or fingerprint {self.data_fingerprint!r} is impossible")
        object.__setattr__(self, "statistics", MappingProxyType(dict(self.statistics)))
        object.__setattr__(self, "layer_inputs", MappingProxyType(dict(self.layer_inputs)))

    def range(self, tensor: str, *, method: str = "default", symmetric: bool, bits: int = 8, degree: int = 1) -> Range:
        """The range to quantize a tensor with; see `ranges.choose_range`.

        `default` is widened where there are few samples (`unseen.widened`); the methods with a definition of their own
        give what it says.

        Args:
            tensor: FX node name.
            degree: how many values that vary are multiplied into one of it; see `degrees.degrees` of its graph.
        Returns:
            (lo, hi), finite, lo <= 0 <= hi.
        Raises:
            CalibrationError: the table has no such tensor.
            UsageError: unknown method.
        """
        if tensor not in self.statistics:
            close = ", ".join(difflib.get_close_matches(tensor, self.statistics, n=3)) or "none alike"
            raise CalibrationError(
                f"the calibration table has no tensor {tensor!r} among its {len(self.statistics)} (close: {close})",
                hint="it was not observed: calibrate the same captured model again",
            )
        statistics = self.statistics[tensor]
        given = given_range(method)
        if given is not None:
            return (-max(-given[0], given[1]), max(-given[0], given[1])) if symmetric else given
        key = (tensor, method, symmetric, bits)
        if key not in self._chosen:  # a search places the same tensors again and again
            self._chosen[key] = choose_range(statistics, method, symmetric=symmetric, bits=bits)
        chosen = self._chosen[key]
        if method != "default":
            return chosen
        return widened(statistics, chosen, symmetric=symmetric, bits=bits, degree=degree)

    def merge(self, other: CalibrationTable) -> CalibrationTable:
        """The table of both tables' samples. Associative and commutative; an empty table is the identity.

        Raises:
            CalibrationError: the other table is of another model (names both), or the sums are past all bounds.
        """
        other.check_model(self.model_fingerprint)
        try:
            return CalibrationTable(
                model_fingerprint=self.model_fingerprint,
                data_fingerprint=_add_fingerprints(self.data_fingerprint, other.data_fingerprint),
                samples=self.samples + other.samples,
                source="synthetic" if "synthetic" in (self.source, other.source) else "data",
                statistics=_merged(self.statistics, other.statistics),
                layer_inputs=_merged(self.layer_inputs, other.layer_inputs),
            )
        except (ValueError, OverflowError) as error:
            raise CalibrationError(f"the tables cannot be merged: {error}", hint="calibrate again") from error

    extend = merge

    def check_model(self, fingerprint: str) -> None:
        """Refuse to be used for another model.

        Raises:
            CalibrationError: names both fingerprints.
        """
        if self.model_fingerprint != fingerprint:
            raise CalibrationError(
                f"this calibration table is of model {self.model_fingerprint[:16]}, not of {fingerprint[:16]}",
                hint="graph, weights or input shapes have changed since: calibrate this model again",
            )

    def summary(self) -> str:
        """One line for people: samples, tensors, source, fingerprints."""
        cached = ", from cache" if self.from_cache else ""
        return (
            f"{self.samples} samples ({self.source}{cached}), {len(self.statistics)} tensors, "
            f"model {self.model_fingerprint[:12]}, data {self.data_fingerprint[:12]}"
        )

    def marked_from_cache(self) -> CalibrationTable:
        """The same table, saying that it was not computed now."""
        return replace(self, from_cache=True)

    def save(self, path: str | Path) -> Path:
        """Write the table; the file is complete and re-read, or it is not there.

        Raises:
            CalibrationError: the file cannot be written; an older file of that name is then untouched.
        """
        path = path_of("path", path)
        if path.suffix != SUFFIX and path.is_file() and path.stat().st_size and not is_table_file(path):
            raise CalibrationError(
                f"{path} is some other file; it is left alone", hint=f"name another file, such as {path.stem}{SUFFIX}"
            )
        write_file(path, _encode(self), error=CalibrationError, check=self._check_equal)
        return path

    def _check_equal(self, written: Path) -> None:
        if CalibrationTable.load(written) != self:
            raise CalibrationError(f"{written}: what was written does not read back as the same table")

    @classmethod
    def load(cls, path: str | Path) -> CalibrationTable:
        """Read a saved table.

        Raises:
            CalibrationError: no such file, damaged, not a calibration table, or of a newer schema; says which.
        """
        header, arrays = _read(path_of("path", path))
        try:
            convert(header, _Header, what="its header", error=CalibrationError)
            return _decode(header, arrays)
        except (
            CalibrationError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            ValueError,
            OverflowError,
            MemoryError,
        ) as error:
            raise _refusal(path, f"its content is inconsistent ({error!r})") from error


def _merged(mine: Mapping[str, _Value], theirs: Mapping[str, _Value]) -> dict[str, _Value]:
    """Values of both, merged where both have one; names that share one object go on doing so."""
    merged: dict[tuple[int, int], _Value] = {}
    result = {}
    for name in sorted({*mine, *theirs}):
        pair = [values[name] for values in (mine, theirs) if name in values]
        key = (id(pair[0]), id(pair[-1]))
        if key not in merged:
            merged[key] = pair[0].merge(pair[1]) if len(pair) == 2 else pair[0]
        result[name] = merged[key]
    return result


def is_table_file(path: Path) -> bool:
    """Whether a safetensors file says that it is a calibration table. False for anything unreadable."""
    try:
        with open_regular(path, links=True, error=CalibrationError) as file:
            begin = file.read(8)
            size = min(int.from_bytes(begin, "little"), MAX_JSON_BYTES)
            return _HEADER in _metadata(begin + file.read(size))
    except CalibrationError:
        return False


def _add_fingerprints(one: str, other: str) -> str:
    return f"{(int(one, 16) + int(other, 16)) % _FINGERPRINT_MODULUS:064x}"


def _encode(table: CalibrationTable) -> bytes:
    """Deterministic bytes. Equal statistics of several tensors (a view and its source) are stored once."""
    from safetensors.numpy import save

    rows: dict[TensorStatistics, int] = {}
    tensors = {name: rows.setdefault(table.statistics[name], len(rows)) for name in sorted(table.statistics)}
    sums: dict[ChannelSums, int] = {}
    layers = {name: sums.setdefault(table.layer_inputs[name], len(sums)) for name in sorted(table.layer_inputs)}
    arrays = _columns(list(rows)) | _sum_columns(list(sums))
    header: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model_fingerprint": table.model_fingerprint,
        "data_fingerprint": table.data_fingerprint,
        "samples": table.samples,
        "source": table.source,
        "bins": BINS,
        "tensors": tensors,
        "layer_inputs": layers,
    }
    header["sha256"] = _digest(header, arrays)
    # One metadata entry only: safetensors does not fix the order of several.
    return bytes(save(arrays, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def _columns(rows: list[TensorStatistics]) -> Arrays:
    spans = [_used_span(row.histogram) for row in rows]
    parts = [row.histogram[a:b] for row, (a, b) in zip(rows, spans, strict=True)]
    return {
        "integers": np.array(
            [
                [r.count, r.batches, r.exponent, r.zeros, r.nonfinite, a, b]
                for r, (a, b) in zip(rows, spans, strict=True)
            ],
            dtype=np.int64,
        ).reshape(-1, 7),
        "extremes": np.array([[r.minimum, r.maximum] for r in rows], dtype=np.float64).reshape(-1, 2),
        "counts": np.concatenate([*parts, np.zeros(0, dtype=np.int64)]),
        "sample_counts": np.array([row.samples.count for row in rows], dtype=np.int64),
        "sample_extremes": np.concatenate(
            [np.array([row.samples.lowest, row.samples.highest], dtype=np.float64) for row in rows]
            + [np.zeros((2, 0))],
            axis=1,
        ),
    }


def _sum_columns(rows: list[ChannelSums]) -> Arrays:
    pairs = [np.stack([row.whole, row.fraction]) for row in rows]
    return {
        "channels": np.array([[row.count, row.whole.size] for row in rows], dtype=np.int64).reshape(-1, 2),
        "sums": np.concatenate([*pairs, np.zeros((2, 0), dtype=np.int64)], axis=1),
    }


def _used_span(histogram: NDArray[np.int64]) -> tuple[int, int]:
    used = np.flatnonzero(histogram)
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


def _digest(header: dict[str, Any], arrays: Arrays) -> str:
    """Over the header (without the digest itself) and every array: nothing in the file can change unnoticed."""
    digest = hashlib.sha256(json.dumps({**header, "sha256": None}, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Header:
    """The JSON header of a table's file."""

    schema_version: int
    model_fingerprint: str
    data_fingerprint: str
    samples: int
    source: str
    bins: int
    tensors: dict[str, int]
    sha256: str
    layer_inputs: dict[str, int] = field(default_factory=dict)


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes, or of their beginning; empty where there is none.

    Raises:
        CalibrationError: it is no such file.
    """
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(MAX_JSON_BYTES, len(data) - 8):
        raise CalibrationError("not a safetensors file")
    header = decode_json(data[8 : 8 + size], dict[str, Any], what="the header", error=CalibrationError)
    found = header.get("__metadata__", {})
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = read_bytes(path, limit=MAX_ARRAY_BYTES, links=True, error=CalibrationError)
    except CalibrationError as error:
        raise _refusal(path, f"it cannot be read ({error.message})") from error
    try:
        metadata = _metadata(data)
    except CalibrationError as error:
        raise _refusal(path, "it is damaged or no calibration table (no readable header)") from error
    if _HEADER not in metadata:
        raise _refusal(path, "it is a safetensors file, but no calibration table")
    header = _header(path, metadata[_HEADER])
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise _refusal(path, f"it is damaged or cut short ({error})") from error
    if header.get("sha256") != _digest(header, arrays):
        raise _refusal(path, "it is damaged (its content does not match its sha256)")
    return header, arrays


def _header(path: Path, text: object) -> dict[str, Any]:
    try:
        if not isinstance(text, str):
            raise CalibrationError("it is no text")
        header = decode_json(text, dict[str, Any], what="its header", error=CalibrationError)
        version = header.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise _refusal(path, f"its schema version is {version}, this deploykit reads up to {SCHEMA_VERSION}")
    except CalibrationError as error:
        raise error if error.hint else _refusal(path, f"its header is damaged ({error.message})") from error
    return header


def _decode(header: dict[str, Any], arrays: Arrays) -> CalibrationTable:
    if header["bins"] != BINS:
        raise ValueError(f"{header['bins']} bins instead of {BINS}")
    if len(arrays["integers"]) > _MAX_ROWS:  # each takes a histogram of 32 kB
        raise ValueError(f"more than {_MAX_ROWS} tensors")
    rows, at = [], 0
    version = header["schema_version"]
    samples = _decode_samples(arrays) if version > 2 else [SampleExtremes()] * len(arrays["integers"])
    extremes = zip(arrays["extremes"].tolist(), samples, strict=True)
    for integers, ((minimum, maximum), seen) in zip(arrays["integers"].tolist(), extremes, strict=True):
        count, batches, exponent, zeros, nonfinite, first, last = integers
        histogram = np.zeros(BINS, dtype=np.int64)
        histogram[first:last] = arrays["counts"][at : at + last - first]
        histogram.flags.writeable = False
        at += last - first
        rows.append(TensorStatistics(count, batches, minimum, maximum, exponent, histogram, zeros, nonfinite, seen))
    if at != len(arrays["counts"]):
        raise ValueError(f"{len(arrays['counts'])} counts instead of {at}")
    sums = _decode_sums(arrays) if version > 1 else []
    return CalibrationTable(
        model_fingerprint=str(header["model_fingerprint"]),
        data_fingerprint=str(header["data_fingerprint"]),
        samples=int(header["samples"]),
        source=str(header["source"]),
        statistics={name: rows[_row(row)] for name, row in header["tensors"].items()},
        layer_inputs={name: sums[_row(row)] for name, row in header.get("layer_inputs", {}).items()},
    )


def _decode_samples(arrays: Arrays) -> list[SampleExtremes]:
    counts, values = arrays["sample_counts"].tolist(), arrays["sample_extremes"]
    ends = np.cumsum([0, *(min(max(count, 0), KEPT) for count in counts)])
    if values.dtype != np.float64 or values.shape != (2, ends[-1]):
        raise ValueError(f"extremes of shape {values.shape} for {ends[-1]} samples")
    parts = (values[:, start:stop].tolist() for start, stop in itertools.pairwise(ends))
    return [SampleExtremes(count, tuple(low), tuple(high)) for count, (low, high) in zip(counts, parts, strict=True)]


def _decode_sums(arrays: Arrays) -> list[ChannelSums]:
    sizes = arrays["channels"][:, 1]
    if arrays["sums"].shape != (2, sizes.sum()) or (sizes < 1).any():
        raise ValueError(f"sums of shape {arrays['sums'].shape} for {sizes.sum()} channels")
    rows, at = [], 0
    for count, size in arrays["channels"].tolist():
        rows.append(ChannelSums(count, *arrays["sums"][:, at : at + size]))
        at += size
    return rows


def _row(row: Any) -> int:
    if type(row) is not int or row < 0:
        raise ValueError(f"{row!r} is no row")
    return row


def _refusal(path: str | Path, why: str) -> CalibrationError:
    return CalibrationError(f"{path}: cannot load this calibration table: {why}", hint="calibrate again and save it")
