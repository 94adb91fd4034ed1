"""What layers compute in is read of the execution graph, also where OpenVINO gives them another name or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

import torch
from torch import nn

import deploykit
from deploykit.testing.models import ZOO


class _Scaled(nn.Module):
    """OpenVINO takes the factor into the weight of a layer without bias, and names the product after the factor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h + self.second(h) * 0.5)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("scaled", {"precision": "fp32"}),
        ("scaled", {"precision": "int8", "exclude": ["second"], "strict": False}),
        ("lstm_classifier", {"precision": "fp32"}),
    ],
    ids=["a factor behind a layer", "kept in float", "a recurrent layer"],
)
def test_no_layer_is_unknown(model: str, options: dict[str, Any], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    module, example = (
        (_Scaled().eval(), (torch.randn(2, 8, generator=generator),)) if model == "scaled" else ZOO[model]()
    )
    calibration = [example, example] if options["precision"] == "int8" else None
    artifact = deploykit.export(
        module,
        target="x86-cpu:openvino",
        example_inputs=example,
        calibration=calibration,
        output=tmp_path / "a",
        profile=False,
        progress=False,
        **options,
    )
    found = {layer.name: layer.precision for layer in artifact.achieved.layers if layer.macs}
    assert found and "unknown" not in found.values(), found


class _Pixels(nn.Module):
    """Linear layers of images with channels last, as ConvNeXt has them: a product and an addition of the bias each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(nn.functional.gelu(self.wide(self.norm(x))))


def test_a_layer_in_parts_is_in_what_its_product_is_in(tmp_path: Path) -> None:
    data = list(torch.randn(6, 1, 5, 5, 16, generator=torch.Generator().manual_seed(0)))
    arguments: dict[str, Any] = {"target": "x86-cpu:openvino", "example_inputs": (data[0],), "progress": False}
    artifact = deploykit.export(
        _Pixels().eval(), calibration=data, output=tmp_path / "a", profile=False, **arguments
    )  # fmt: skip
    assert artifact.achieved.as_asked_fraction == 1.0
    kept = deploykit.export(
        _Pixels().eval(), calibration=data, exclude=["wide"], output=tmp_path / "b", profile=False, strict=False,
        **arguments,
    )  # fmt: skip
    found = {layer.module_path: layer.precision for layer in kept.achieved.layers if layer.macs}
    assert found == {"wide": "float32", "narrow": "int8"}
    with artifact.open() as session:
        times = session.op_times({artifact.inputs[0].name: data[0].numpy()}, runs=3)
    # without VNNI they are computed in float32, and the operator has another name
    assert {"wide", "narrow"} <= {time.module_path for time in times if time.op.startswith("FullyConnected")}
