"""`float32` for a layer of a recipe: held in files that have types, refused where a file has another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploykit
from deploykit import pipeline
from deploykit.plugin.registry import toolchain

LAYER = "linear_1"


@pytest.fixture(scope="module")
def case() -> Any:
    torch.manual_seed(0)
    widths = ((64, 128), (128, 128), (128, 16))
    model = nn.Sequential(*(step for width in widths for step in (nn.Linear(*width), nn.GELU()))).eval()
    data = list(torch.randn(8, 8, 64, generator=torch.Generator().manual_seed(1)))
    captured = pipeline.capture(model, example_inputs=(data[0],))
    return captured, pipeline.calibrate(captured, data, progress=False)


def exported(case: Any, folder: Path, target: str, precision: str, words: tuple[str, ...]) -> Any:
    """The last of the exports whose recipes say each word for the layer."""
    try:
        toolchain(pipeline.request(target, precision).toolchain).check_installed(export=True)
    except deploykit.MissingDependencyError as error:
        pytest.skip(error.message)
    arguments: dict[str, Any] = {"calibration": case[1]} if precision in ("int8", "mixed") else {}
    arguments |= {"profile": False, "progress": False, "strict": False}
    made = deploykit.export(case[0], target, precision, output=folder / "plain", **arguments)
    for word in words:
        layers = [replace(e, precision=word, chosen=True) if e.name == LAYER else e for e in made.recipe.layers]
        recipe = replace(made.recipe, layers=tuple(layers))
        made = deploykit.export(case[0], target, recipe=recipe, output=folder / word, **arguments)
    return made


@pytest.mark.parametrize(
    ("target", "precision"),
    [("jetson-orin", "mixed"), ("jetson-orin", "fp16"), ("iphone-15", "int8"), ("iphone-15", "fp16")],
)
def test_a_layer_is_held_in_float32_where_others_are_float16(
    case: Any, target: str, precision: str, tmp_path: Path
) -> None:
    words = ("float", "float32") if precision in ("int8", "mixed") else ("float32",)
    made = exported(case, tmp_path, target, precision, words)
    found = {layer.name: layer.precision for layer in made.achieved.layers}
    assert found[LAYER] == "float32"
    assert {layer.name: layer.precision for layer in made.recipe.layers}[LAYER] == "float32"
    if precision in ("int8", "mixed"):
        other = exported(case, tmp_path / "other", target, precision, ("float",))
        assert {layer.name: layer.precision for layer in other.achieved.layers}[LAYER] == "float16"


def test_what_the_file_does_not_have_is_refused(case: Any, tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match=r"linear_1 .* in float32, and litert has it in float16-weights"):
        exported(case, tmp_path, "android", "fp16", ("float32",))
    with pytest.raises(deploykit.UsageError, match="a layer of fp16 is float or float32"):
        exported(case, tmp_path / "b", "jetson-orin", "fp16", ("bf16",))
