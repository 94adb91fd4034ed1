"""Cells in the model's own loop, in int8: every step is placed and computed. `test_models` has the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import torch
from torch import Tensor, nn

import deploykit
from deploykit.testing.models import seeded

STEPS, INPUTS, WIDTH = 3, 12, 16


class Loop(nn.Module):
    """A cell in the user's loop, the last step classified."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.has_memory = getattr(nn, kind)(INPUTS, WIDTH), kind == "LSTMCell"
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Any:
        state = memory = torch.zeros(x.shape[0], WIDTH)
        for step in range(STEPS):
            if self.has_memory:
                state, memory = self.cell(x[:, step], (state, memory))
            else:
                state = self.cell(x[:, step], state)
        return self.head(state)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_every_step_multiplies_in_int8(kind: str, tmp_path: Path) -> None:
    with seeded(3):
        model = Loop(kind).eval()
        data = [torch.randn(1, STEPS, INPUTS) for _ in range(24)]
    artifact = deploykit.export(
        model,
        "x86-cpu-avx2:tvm",
        "int8",
        example_inputs=(data[0],),
        calibration=data,
        profile=False,
        progress=False,
        output=tmp_path / "artifact",
    )
    assert artifact.manifest.achieved.macs_fraction("int8") == 1.0
