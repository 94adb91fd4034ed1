"""Layers in float between layers of integers, as `exclude`, recipes and mixed precision place them.

A layer over real numbers has no scale that brings its sums to eight bits: rounding them is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import deploykit


class Product(nn.Module):
    """A product of two activations in float, read by a layer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(11, 16)
        self.read = nn.Linear(9, 20)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(x)
        return self.read(torch.matmul(projected, projected.transpose(-1, -2)))


CASES: dict[str, tuple[Callable[[], nn.Module], Sequence[str]]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 15, 3), nn.ReLU6(), nn.Conv2d(15, 7, 1)), ["0"]),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1)),
        ["1"],
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 5, 1)),
        ["0"],
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(11, 20), nn.Hardtanh(), nn.Linear(20, 7)), ["0"]),
    "product": (Product, ["project", "matmul*"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_float_layer_before_one_of_integers_computes_what_its_simulation_does(name: str, tmp_path: Path) -> None:
    make, exclude = CASES[name]
    torch.manual_seed(0)
    data = [torch.randn(1, 3, 9, 11) for _ in range(12)]
    artifact = deploykit.export(
        make().eval(), "x86-cpu-avx2:tvm", "int8", example_inputs=(data[0],), calibration=data, exclude=exclude,
        output=tmp_path / "a", min_placement=0.0, profile=False, progress=False, strict=False,
    )  # fmt: skip
    kinds = {layer.precision for layer in artifact.recipe.layers}
    assert kinds == {"int8", "float"}, "one of each, or nothing is tested"
    of_simulation = artifact.parity.chain[1].worst.sqnr_db
    assert of_simulation is not None and of_simulation > 60.0  # the same codes; sums in float32 differ in their order
