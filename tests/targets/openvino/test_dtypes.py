"""Outputs of every dtype: OpenVINO's fused kernels refuse most of them, its single operators do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("openvino", reason="OpenVINO is not installed")

import deploykit


class Counts(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = nn.Linear(8, 4), dtype

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x).abs() * 10 + 1).to(self.dtype)


@pytest.mark.parametrize("name", ["int16", "uint16", "int64", "float64", "bool", "uint8"])
def test_outputs(name: str, tmp_path: Path) -> None:
    model, x = Counts(getattr(torch, name)).eval(), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    artifact = deploykit.export(
        model,
        target="x86-cpu:openvino",
        precision="fp32",
        example_inputs=(x,),
        output=tmp_path / "counts",
        profile=False,
        progress=False,
    )
    with artifact.open() as session:
        (found,) = session.run({session.inputs[0].name: x.numpy()}).values()
    assert found.dtype == np.dtype(name)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-5)


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x.float() / 100)))  # type: ignore[no-any-return]


def test_integers_that_a_layer_reads_at_once(tmp_path: Path) -> None:
    """With its factor in the weights, the int8 kernel would read int16, which it refuses."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Raw().eval()
    data = [(torch.randint(-100, 100, (2, 16), generator=generator).to(torch.int16),) for _ in range(16)]
    artifact = deploykit.export(
        model,
        target="x86-cpu:openvino",
        precision="int8",
        example_inputs=data[0],
        calibration=data,
        output=tmp_path / "raw",
        min_placement=0.0,  # what tiny layers run in is the CPU's choice; that the file opens is not
        profile=False,
        progress=False,
    )
    assert artifact.inputs[0].dtype == "int16"
    with artifact.open() as session, torch.no_grad():
        (found,) = session.run({session.inputs[0].name: data[0][0].numpy()}).values()
        np.testing.assert_allclose(found, model(*data[0]).numpy(), atol=0.1)
