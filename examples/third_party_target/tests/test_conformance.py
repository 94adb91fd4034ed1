"""The suite that deploykit ships, run against this target."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import deploykit
from deploykit.testing import TargetConformance, models


def two_inputs() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Two feature vectors in, a dict of `scores` and `code` out, in the operators that this target has."""

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 4), nn.Linear(3, 2)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": torch.relu(self.left(left)), "code": torch.tanh(self.right(right))}

    with models.seeded(0):
        return TwoInputs().eval(), {"left": torch.randn(2, 6), "right": torch.randn(2, 3)}


class TestNumpy(TargetConformance):
    target: ClassVar[str] = "numpy-cpu"
    model = staticmethod(models.mlp)
    two_inputs = staticmethod(two_inputs)


def test_an_operator_outside_the_table_is_named_with_its_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=-1))
    with pytest.raises(deploykit.ConversionError, match=r"softmax.*in 1\b"):
        deploykit.export(
            model, target="numpy", precision="fp32", example_inputs=(torch.randn(1, 4),), output=tmp_path / "never"
        )
    assert not any(tmp_path.iterdir())
