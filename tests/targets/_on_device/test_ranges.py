"""From `dynamic_shapes` to the ranges that an engine is built for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import deploykit
from deploykit_targets._on_device import board


def ranges(folder: Path, target: str, dynamic_shapes: Any, *, max_batch: int = 8) -> Any:
    """(smallest, usual, largest) of the one input, as the blueprint in the artifact says."""
    artifact = deploykit.export(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval(),
        target=target,
        precision="fp32",
        example_inputs=(torch.ones(2, 3, 16, 16),),
        dynamic_shapes={"input": dynamic_shapes},
        output=folder / "artifact",
        profile=False,
        progress=False,
    )
    blueprint = json.loads((artifact.path / "blueprint.json").read_text())
    return board.shape_ranges(blueprint, SimpleNamespace(max_batch=max_batch, shape=[]))["input"]


@pytest.mark.parametrize("target", ["jetson-orin", "amd-mi300x"])
def test_declared_bounds_are_the_default(tmp_path: Path, target: str) -> None:
    bounded = {2: Dim("h", min=8, max=64), 3: Dim("w", min=8, max=64)}
    assert ranges(tmp_path, target, bounded) == ((2, 3, 8, 8), (2, 3, 16, 16), (2, 3, 64, 64))


def test_one_bound_leaves_the_other_as_it_was(tmp_path: Path) -> None:
    assert ranges(tmp_path, "jetson-orin", {2: Dim("h", min=4)}) == ((2, 3, 4, 16), (2, 3, 16, 16), (2, 3, 16, 16))


def test_a_declared_batch_is_stronger_than_the_option(tmp_path: Path) -> None:
    assert ranges(tmp_path, "jetson-orin", {0: Dim("n", min=1, max=32)})[2] == (32, 3, 16, 16)


def test_without_bounds_nothing_changes(tmp_path: Path) -> None:
    found = ranges(tmp_path, "jetson-orin", {0: Dim.AUTO, 2: Dim.AUTO}, max_batch=6)
    assert found == ((1, 3, 1, 16), (2, 3, 16, 16), (6, 3, 16, 16))


def test_a_blueprint_of_an_older_export_has_no_bounds() -> None:
    blueprint = {"inputs": [{"name": "x", "shape": ["n", "t"], "dtype": "float32", "example": [2, 5]}]}
    found = board.shape_ranges(blueprint, SimpleNamespace(max_batch=8, shape=[]))
    assert found == {"x": ((1, 1), (2, 5), (8, 5))}
