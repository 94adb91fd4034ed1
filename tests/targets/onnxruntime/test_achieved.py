"""What is counted as achieved names every multiply-accumulate, whatever ONNX Runtime called or fused it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import deploykit


def export(model: nn.Module, shape: tuple[int, ...], folder: Path, target: str = "x86-cpu") -> deploykit.Artifact:
    torch.manual_seed(0)
    batches = [torch.randn(shape) for _ in range(2)]
    exclude = [name for name, module in model.named_children() if name == "2"]
    return deploykit.export(
        model.eval(), target, "int8", example_inputs=(batches[0],), calibration=batches, exclude=exclude,
        profile=False, progress=False, output=folder / "a",
    )  # fmt: skip


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.GELU()])
def test_linear_before_a_float_layer_runs_in_int8(activation: nn.Module, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), activation, nn.Linear(32, 32))
    layers = {layer.module_path: layer.precision for layer in export(model, (4, 32), tmp_path).achieved.layers}
    assert layers == {"0": "int8", "2": "float32"}


def test_layers_that_runtimes_rename_are_found(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU())
    layers = {layer.module_path: layer.precision for layer in export(model, (1, 3, 16, 16), tmp_path).achieved.layers}
    assert layers["0"] == "int8"
    assert "unknown" not in layers.values()
