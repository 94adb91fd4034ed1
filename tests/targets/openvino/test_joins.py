"""What int8 layers give is joined over any axis, and multiplied again: OpenVINO's own pass fails on rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

import torch
from torch import Tensor, nn

import deploykit

Join = Callable[[Tensor, Tensor], Tensor]
_JOINS: dict[str, Join] = {
    "samples": lambda a, b: torch.cat([a, b], 0),
    "rows": lambda a, b: torch.cat([a, b], 1),
    "features": lambda a, b: torch.cat([a, b], 2)[..., ::2],
    "stacked": lambda a, b: torch.stack([a, b], 1).flatten(1, 2),
    "beside floats": lambda a, b: torch.cat([a, b.sigmoid()], 1),
    "floats": lambda a, b: torch.stack([a.sigmoid(), b.tanh()], 1).flatten(1, 2),
    "floats over rows": lambda a, b: torch.cat([a.sigmoid(), b.tanh()], 1),
    "rolled": lambda a, b: torch.roll(a + b, 1, 1),
    "flipped": lambda a, b: torch.flip(a + b, (1,)),
}


class _Joined(nn.Module):
    def __init__(self, join: Join) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.last, self.join = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 24), join

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.join(self.left(x), self.right(x)))
        return found


@pytest.mark.parametrize("device", ["x86-cpu", "x86-cpu-avx2"])
@pytest.mark.parametrize("name", _JOINS)
def test_joins_are_multiplied_as_integers(name: str, device: str, tmp_path: Path) -> None:
    data = list(torch.randn(8, 1, 4, 16, generator=torch.Generator().manual_seed(0)))
    artifact = deploykit.export(
        _Joined(_JOINS[name]).eval(), target=f"{device}:openvino", example_inputs=(data[0],), calibration=data,
        output=tmp_path / "a", profile=False, progress=False,
    )  # fmt: skip
    assert artifact.achieved.as_asked_fraction == 1.0
    assert artifact.parity is not None and artifact.parity.quantization is not None
    assert artifact.parity.sqnr_db == pytest.approx(artifact.parity.quantization.worst.sqnr_db, abs=1.0)
