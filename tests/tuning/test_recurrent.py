"""Mixed precision of recurrent layers that a target writes out step by step: found, followed, and the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploykit

LENGTH, UNITS = 5, 24
NEEDS = {"x86-cpu:openvino": "openvino", "iphone-15": "coremltools"}


class Net(nn.Module):
    """Two LSTM layers under a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = nn.LSTM(12, UNITS, 2, batch_first=True)
        self.middle, self.head = nn.Linear(UNITS, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.middle(self.steps(x)[0][:, -1]).relu())
        return found


@pytest.mark.nightly
@pytest.mark.parametrize("target", NEEDS)
def test_what_is_missed_by_decibels_is_met_with_steps_in_float(target: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[target], reason=f"{NEEDS[target]} is not installed")
    draw = torch.Generator().manual_seed(1)
    data = [torch.randn(1, LENGTH, 12, generator=draw) for _ in range(24)]
    asked: dict[str, Any] = {"example_inputs": (data[0],), "calibration": data, "min_placement": 0.3}
    asked |= {"profile": False, "progress": False, "exclude": ["middle", "head"]}  # so that steps are what is left
    plain = deploykit.export(Net().eval(), target, "int8", output=tmp_path / "plain", **asked)
    assert plain.parity is not None and plain.parity.sqnr_db is not None
    assert plain.achieved.as_asked_fraction > 0.9, "steps are int8"

    goal = plain.parity.sqnr_db + 3.0
    plan = deploykit.tune(
        Net().eval(), target, "int8", min_sqnr_db=goal, allow=("ptq", "mixed"), output=tmp_path / "a", **asked
    )
    assert plan.met and plan.best.parity is not None and plan.best.parity.sqnr_db is not None
    assert plan.best.parity.sqnr_db >= goal
    chosen = [layer for layer in plan.recipe.layers if layer.chosen]
    assert any(layer.module_path == "steps" for layer in chosen), "of the layers, steps of the LSTM"
    in_float = {layer.name for layer in plan.best.achieved.layers if layer.precision.startswith("float")}
    assert {layer.name for layer in chosen if layer.kind == "linear"} <= in_float, "the file has them so"
    assert 0.3 <= plan.best.achieved.as_asked_fraction < plain.achieved.as_asked_fraction

    del asked["exclude"]  # the recipe has it
    again = deploykit.export(Net().eval(), target, recipe=plan.recipe, output=tmp_path / "b", **asked)
    assert again.status == "verified" and again.recipe == plan.recipe
    assert again.manifest.files == plan.best.manifest.files
