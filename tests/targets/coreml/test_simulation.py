"""The simulated graph of an int8 program computes what the program says: float16 beside integers, scales too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("coremltools", reason="coremltools is not installed")

import torch
from torch import nn

from deploykit.testing.lowering import lowering

_EXACT_DB = 100.0  # rounding to float16 alone leaves some 70 dB


class _Scaled(nn.Module):
    """Integers, and float16 between them: an activation, a number, a norm, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.silu(self.first(x) * 0.3)
        return self.second(self.norm(h)) * 1.7


class _Sums(nn.Module):
    """Sums of integers, with ReLU and without, a difference, and one whose result is also read as a float."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x) + self.b(x))
        g = self.c(h) - h
        return self.d(g) + torch.tanh(g) * 3.0


@pytest.mark.parametrize("network", [_Scaled, _Sums])
def test_a_program_is_simulated_to_the_last_bit(network: Callable[[], nn.Module], tmp_path: Path) -> None:
    link = lowering(lambda: (network(), torch.randn(4, 12)), "iphone-15", tmp_path / "a")
    assert link.worst.sqnr_db is not None and link.worst.sqnr_db > _EXACT_DB
