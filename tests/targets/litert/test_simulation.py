"""The simulated graph of an int8 file computes its integers: weights, biases and requantised sums."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("litert_torch", reason="litert-torch is not installed")

import torch
from torch import nn

import deploykit
from deploykit.judge.parity import SIMULATED

_EXACT_DB = 100.0  # a bias that stays float in the simulation leaves some 40 to 60 dB


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.narrow, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8 * 8 * 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.stem(x))
        h = h + self.narrow(torch.relu(self.wide(h)))
        return self.head(h.flatten(1))


def test_a_file_is_simulated_to_the_last_integer(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data = _Residual().eval(), [(torch.randn(4, 3, 16, 16),) for _ in range(8)]
    artifact = deploykit.export(
        model,
        target="android",
        precision="int8",
        example_inputs=data[0],
        calibration=data,
        output=tmp_path / "a",
        profile=False,
        progress=False,
    )
    assert artifact.parity is not None
    link = next(link for link in artifact.parity.chain if link.reference == SIMULATED)
    assert link.worst.spread is not None
    # a value half-way between two integers may turn to either, in one sample of them
    assert median(link.worst.spread.sample_db) > _EXACT_DB


class _Averaged(nn.Module):
    """Regions of 2 x 2 and 4 x 4: a quarter and a sixteenth of their means lie half-way between two integers."""

    def __init__(self, average: nn.Module) -> None:
        super().__init__()
        self.stem, self.average, self.last = nn.Conv2d(3, 16, 1), average, nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.average(self.stem(x))).mean((2, 3))


@pytest.mark.parametrize(
    "average",
    [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.AvgPool2d(2)],
    ids=["mean", "pool of a size", "pool"],
)
def test_averages_turn_to_the_side_that_the_kernels_turn_to(tmp_path: Path, average: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data = _Averaged(average).eval(), [(torch.rand(16, 3, 4, 4) * 2 - 1,) for _ in range(8)]
    artifact = deploykit.export(
        model,
        target="android",
        precision="int8",
        example_inputs=(data[0][0][:1],),
        calibration=data,
        output=tmp_path / "a",
        profile=False,
        progress=False,
        strict=False,
    )
    assert artifact.parity is not None
    link = next(link for link in artifact.parity.chain if link.reference == SIMULATED)
    found = link.worst.spread  # None where nothing differs
    assert found is None or median(found.sample_db) > _EXACT_DB  # 40 to 45 dB where ties turn to either side
