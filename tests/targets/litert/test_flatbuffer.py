"""Reading and writing .tflite files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit_targets.litert import flatbuffer

needs_schema = pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed")
needs_converter = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"not a flatbuffer at all")
    with pytest.raises(deploykit.ArtifactError, match=r"a\.tflite is not a \.tflite file"):
        flatbuffer.read(tmp_path / "a.tflite")


@needs_schema
def test_values_behind_the_flatbuffer_are_kept(tmp_path: Path) -> None:
    """ai-edge-quantizer writes the weights of models of some size there."""
    schema = flatbuffer.schema()
    model, buffer = schema.ModelT(), schema.BufferT()
    model.version, model.buffers = 3, [schema.BufferT(), buffer]
    buffer.offset, buffer.size = 1, 8
    flatbuffer.write(model, tmp_path / "a.tflite")
    data, values = bytearray((tmp_path / "a.tflite").read_bytes()), np.arange(8, dtype=np.uint8)
    buffer.offset = len(data)
    flatbuffer.write(model, tmp_path / "a.tflite")
    data = bytearray((tmp_path / "a.tflite").read_bytes())
    assert len(data) == buffer.offset
    (tmp_path / "a.tflite").write_bytes(bytes(data) + values.tobytes())
    read = flatbuffer.read(tmp_path / "a.tflite")
    np.testing.assert_array_equal(read.buffers[1].data, values)
    flatbuffer.write(read, tmp_path / "b.tflite")
    np.testing.assert_array_equal(flatbuffer.read(tmp_path / "b.tflite").buffers[1].data, values)


@needs_converter
@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic", "int8-weight-only", "int4-weight-only"])
def test_a_model_of_some_size_keeps_its_weights(tmp_path: Path, precision: str) -> None:
    """Four MiB of weights: enough for the quantizer to put them behind the flatbuffer."""
    import torch

    torch.manual_seed(0)
    deploykit.export(
        torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 8)),
        "android",
        precision,
        example_inputs=(torch.randn(1, 1024),),
        output=tmp_path / "a",
        profile=False,
        progress=False,
    )
