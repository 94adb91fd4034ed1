"""TFLite metadata in the file, read back field by field as its public schema lays them out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.metadata import BUFFER_NAME, Described, encoded

flatbuffers = pytest.importorskip("flatbuffers", reason="LiteRT's export packages are not installed")
needs_converter = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")


class Reader:
    """A table of a flatbuffer by the places of its fields."""

    def __init__(self, data: bytes, position: int) -> None:
        from flatbuffers.table import Table

        self._data, self._table = data, Table(bytearray(data), position)

    @classmethod
    def root(cls, data: bytes) -> Reader:
        return cls(data, int(np.frombuffer(data, np.uint32, 1)[0]))

    def _at(self, place: int) -> int:
        offset: int = self._table.Offset(4 + 2 * place)
        return offset and offset + int(self._table.Pos)

    def text(self, place: int) -> str:
        at = self._at(place)
        return self._table.String(at).decode() if at else ""

    def table(self, place: int) -> Reader:
        at = self._at(place)
        assert at
        return Reader(self._data, self._table.Indirect(at))

    def byte(self, place: int) -> int:
        at = self._at(place)
        return self._data[at] if at else 0

    def number(self, place: int) -> int:
        at = self._at(place)
        return int(np.frombuffer(self._data, np.uint32, 1, at)[0]) if at else 0

    def _vector(self, place: int) -> tuple[int, int]:
        offset = self._table.Offset(4 + 2 * place)
        return (int(self._table.Vector(offset)), int(self._table.VectorLen(offset))) if offset else (0, 0)

    def tables(self, place: int) -> list[Reader]:
        start, count = self._vector(place)
        return [Reader(self._data, self._table.Indirect(start + 4 * i)) for i in range(count)]

    def texts(self, place: int) -> list[str]:
        start, count = self._vector(place)
        return [self._table.String(start + 4 * i).decode() for i in range(count)]

    def floats(self, place: int) -> list[float]:
        start, count = self._vector(place)
        return np.frombuffer(self._data, np.float32, count, start).tolist() if count else []


def of_file(path: Path) -> Reader:
    model = flatbuffer.read(path)
    entries = [entry for entry in model.metadata if entry.name == BUFFER_NAME]
    assert len(entries) == 1
    data = bytes(model.buffers[entries[0].buffer].data)
    assert data[4:8] == b"M001"
    return Reader.root(data)


def export(output: Path, precision: str = "int8", **options: Any) -> deploykit.Artifact:
    module, example_inputs = models.mobilenet_like()
    return deploykit.export(
        module,
        "android",
        precision,
        example_inputs=example_inputs,
        calibration=batches(example_inputs, 8) if precision == "int8" else None,
        output=output,
        options=options,
        profile=False,
        progress=False,
    )


@needs_converter
def test_file_says_what_it_takes_and_gives(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", layout="nhwc", io="int8", name="Birds", mean=[127.5], std=[128.0])
    found = of_file(artifact.entry)
    assert found.text(0) == "Birds" and "int8 for android" in found.text(1)
    (subgraph,) = found.tables(3)
    (image,), (scores,) = subgraph.tables(2), subgraph.tables(3)
    entry = artifact.manifest.metadata["file"]["inputs"][0]
    assert image.text(0) == "x" and f"{entry['scale']:.9g} x (q - {entry['zero_point']})" in image.text(1)
    assert image.texts(2) == ["batch", "height", "width", "channels"]
    content = image.table(3)
    assert content.byte(0) == 2  # ImageProperties
    properties = content.table(1)
    assert properties.byte(0) == 1  # RGB
    assert (properties.table(1).number(0), properties.table(1).number(1)) == (32, 32)
    (unit,) = image.tables(4)
    assert unit.byte(0) == 1  # NormalizationOptions
    assert unit.table(1).floats(0) == [127.5] and unit.table(1).floats(1) == [128.0]
    _, example_inputs = models.mobilenet_like()
    largest = max(float(sample[0].max()) for sample in batches(example_inputs, 8))
    assert image.table(5).floats(0) == pytest.approx([largest], rel=2**-8)  # calibration may run in bfloat16
    assert scores.text(0) == "output" and scores.table(3).byte(0) == 1  # FeatureProperties


@needs_converter
def test_what_is_not_known_is_not_written(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", "fp32")
    (subgraph,) = of_file(artifact.entry).tables(3)
    (image,) = subgraph.tables(2)
    assert image.tables(4) == [] and image._at(5) == 0


@needs_converter
@pytest.mark.parametrize(
    "normalisation", [{"mean": [0.0]}, {"mean": [0.0], "std": [0.0]}, {"mean": [0.0, 1.0], "std": [1.0, 1.0]}]
)
def test_normalisation_that_does_not_fit_is_refused(tmp_path: Path, normalisation: dict[str, Any]) -> None:
    with pytest.raises(deploykit.UsageError, match="do not fit"):
        export(tmp_path / "a", "fp32", **normalisation)


def test_metadata_of_equal_models_is_equal() -> None:
    one = Described("x", "float32 [1, 4]", minimum=(-1.0,), maximum=(1.0,))
    assert encoded("m", "d", [one], []) == encoded("m", "d", [one], [])
    subgraph = Reader.root(encoded("m", "d", [one, one], [])).tables(3)[0]
    assert len(subgraph.tables(2)) == 2 and subgraph.tables(3) == []
