"""The simulated graph of an int8 file computes its integers: weights, biases and requantised sums."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("litert_torch", reason="litert-torch is not installed")

import torch
from torch import nn

from deploykit.testing.lowering import lowering, median_db

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
    link = lowering(lambda: (_Residual(), torch.randn(4, 3, 16, 16)), "android", tmp_path / "a")
    assert median_db(link) > _EXACT_DB


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
    def make() -> tuple[nn.Module, torch.Tensor]:
        torch.manual_seed(1)  # gives an even zero-point: with odd ones kernels for AVX2 turn ties of MEAN otherwise
        return _Averaged(average), torch.rand(16, 3, 4, 4) * 2 - 1

    link = lowering(make, "android", tmp_path / "a", strict=False)
    assert median_db(link) > _EXACT_DB  # 40 to 45 dB where ties turn to either side
