"""What the weight precisions do with patterns and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("onnxruntime", reason="these exports run in ONNX Runtime")

import torch
from torch import nn

import deploykit


def export(output: Path, precision: str, **changes: Any) -> deploykit.Artifact:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    arguments = {"example_inputs": (torch.randn(2, 32),), "profile": False, "progress": False, **changes}
    return deploykit.export(model, "onnxruntime", precision, output=output, **arguments)


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [("int8-dynamic", "int8"), ("int8-weight-only", "int8-weights"), ("int4-weight-only", "int4-weights")],
)
def test_patterns_keep_layers_in_float(tmp_path: Path, precision: str, wanted: str) -> None:
    for patterns in ({"exclude": ["2"]}, {"include": ["0"]}):
        layers = export(tmp_path / "a", precision, **patterns).achieved.layers
        assert [(layer.module_path, layer.precision) for layer in layers] == [("0", wanted), ("2", "float32")]
        assert "pattern" in layers[1].reason
    with pytest.raises(deploykit.UsageError, match="'nothing' matches no layer"):
        export(tmp_path / "b", precision, exclude=["nothing"])


def test_patterns_without_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match="has no effect in fp16"):
        export(tmp_path / "a", "fp16", exclude=["2"])


@pytest.mark.parametrize("block_size", [0, 7, 8, 48])
def test_a_block_size_that_no_kernel_has_is_refused(tmp_path: Path, block_size: int) -> None:
    with pytest.raises(deploykit.UsageError, match="no power of two from 16"):
        export(tmp_path / "a", "int4-weight-only", options={"block_size": block_size})
