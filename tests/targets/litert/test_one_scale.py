"""Operators of integers whose operands LiteRT's converter gives one scale, whether or not a placement rounds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploykit

pytest.importorskip("litert_torch", reason="litert-torch is not installed")

GOAL_DB = (
    60.0  # between simulation and artifact: kernels differ by a rounding of float32; with cut values it is 5 to 24
)


class Pair(nn.Module):
    """Two convolutions whose results differ in size by a factor of eight, and an operator over both."""

    def __init__(self, over: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.over = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), over
        with torch.no_grad():
            self.b.weight.mul_(8.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.over(self.a(x).relu(), self.b(x).relu())


def odd(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(torch.arange(8)[:, None, None] % 2 == 0, a, b)


def simulated_to_artifact_db(artifact: Any) -> float:
    return float(artifact.parity.chain[1].worst.sqnr_db)


def exported(model: nn.Module, folder: Path, **arguments: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(1, 3, 8, 8, generator=generator) for _ in range(8)]
    return deploykit.export(
        model.eval(), "android", calibration=data, example_inputs=(data[0],), strict=False, output=folder,
        profile=False, progress=False, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    "over",
    [torch.maximum, torch.minimum, odd, lambda a, b: torch.stack([a, b], 1)],
    ids=["max", "min", "where", "stack"],
)
def test_values_of_the_larger_operand_are_not_cut_off(over: Callable[..., Tensor], tmp_path: Path) -> None:
    assert simulated_to_artifact_db(exported(Pair(over), tmp_path / "a", precision="int8")) > GOAL_DB


def test_a_concatenation_that_a_recipe_keeps_in_float_cuts_nothing_off(tmp_path: Path) -> None:
    model = Pair(lambda a, b: torch.cat([a, b], 1).mean((2, 3)))
    plain = exported(model, tmp_path / "a", precision="int8")
    layers = [replace(e, precision="float", chosen=True) if e.kind == "concat" else e for e in plain.recipe.layers]
    assert any(layer.chosen for layer in layers)
    kept = exported(model, tmp_path / "b", recipe=replace(plain.recipe, layers=tuple(layers)))
    assert simulated_to_artifact_db(kept) > GOAL_DB
