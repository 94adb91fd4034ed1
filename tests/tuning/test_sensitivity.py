"""`deploykit.sensitivity` and its command: the ranking of a model that a user gives, for a target by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import deploykit
from deploykit.cli import main
from deploykit.contract.errors import CalibrationError, UsageError

Made = tuple[nn.Module, tuple[torch.Tensor, ...]]
MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    return net, (torch.zeros(1, 3, 8, 8),)
"""


@pytest.fixture
def made() -> Made:
    scope: dict[str, object] = {}
    exec(MODEL, scope)  # the text that the command imports from a file
    return scope["make"]()  # type: ignore[operator,no-any-return]


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, 8, 8, generator=generator) for _ in range(6)]


@pytest.mark.parametrize("target", ["x86-cpu", "jetson-orin", "android", "iphone-15", "raspberry-pi-5:tvm"])
def test_every_target_has_a_ranking(made: Made, target: str) -> None:
    model, inputs = made
    try:
        found = deploykit.sensitivity(model, target, data(), example_inputs=inputs, progress=False)
    except deploykit.MissingDependencyError as error:
        pytest.skip(str(error))
    gains = [layer.share for layer in found.layers]
    assert gains == sorted(gains, reverse=True)
    assert {layer.module_path for layer in found.layers} >= {"0", "2"}
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["name"] == found.layers[0].name
    assert str(found).count("\n") == len(found.layers) + 1


def test_it_takes_what_export_takes(made: Made) -> None:
    model, inputs = made
    table = deploykit.calibrate(model, data(), example_inputs=inputs, progress=False)
    found = deploykit.sensitivity(
        model, calibration=table, example_inputs=inputs, exclude=["0"], calibration_method="minmax", progress=False
    )
    assert found.samples == 1, "a finished table has no samples: the example inputs"
    assert "0" not in {layer.module_path for layer in found.layers}


def test_what_a_recipe_keeps_in_float_stays_so(made: Made, tmp_path: Path) -> None:
    model, inputs = made
    asked = {"example_inputs": inputs, "calibration": data(), "progress": False}
    artifact = deploykit.export(model, **asked, exclude=["2"], profile=False, strict=False, output=tmp_path / "out")
    found = deploykit.sensitivity(model, recipe=artifact.recipe, **asked)
    assert "0" in {layer.module_path for layer in found.layers} and "2" not in {
        each.module_path for each in found.layers
    }


def test_what_has_no_answer_is_refused(made: Made) -> None:
    model, inputs = made
    with pytest.raises(CalibrationError, match="needs calibration data"):
        deploykit.sensitivity(model, example_inputs=inputs)
    with pytest.raises(UsageError, match="no layer is sensitive"):
        deploykit.sensitivity(model, example_inputs=inputs, precision="fp32", progress=False)


def test_the_command_shows_layers_and_candidates(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sensitive_net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    arguments = ["sensitivity", "sensitive_net:make", "--calibration", "synthetic"]
    assert main([*arguments, "--top", "2"]) == 0
    page = capfd.readouterr().out
    assert "share of noise" in page and "and 1 more layers" in page
    assert main([*arguments, "--target", "jetson-orin", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["target"], document["precision"], document["cost_unit"]) == (
        "jetson-orin",
        "int8",
        "us, estimated",
    )
    assert document["front"][0]["kept"] == [] and document["layers"]
