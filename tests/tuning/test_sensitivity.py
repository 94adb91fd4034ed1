"""`deploykit.sensitivity` and its command: the ranking of a model that a user gives, for a target by name."""

from __future__ import annotations

import json
from dataclasses import replace
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


@pytest.mark.parametrize("target", ["x86-cpu", "iphone-15"])
def test_a_layer_that_is_kept_has_the_type_that_the_file_has(made: Made, target: str, tmp_path: Path) -> None:
    model, inputs = made
    asked = {"calibration": data(), "example_inputs": inputs, "progress": False}
    try:
        found = deploykit.sensitivity(model, target, **asked)
        artifact = deploykit.export(
            model, target, "int8", exclude=["2"], output=tmp_path / "a", strict=False, profile=False, **asked
        )
    except deploykit.MissingDependencyError as error:
        pytest.skip(str(error))
    (kept,) = (layer for layer in artifact.achieved.layers if layer.module_path == "2")
    assert found.to_dict()["rest"] == kept.precision


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
    with pytest.raises(UsageError, match=r"precision='auto' is what deploykit.export finds"):
        deploykit.sensitivity(model, "x86-cpu", "synthetic", example_inputs=inputs, precision="auto")
    with pytest.raises(UsageError, match=r"no layer is sensitive[\s\S]*such as int8"):
        deploykit.sensitivity(model, example_inputs=inputs, precision="fp32", progress=False)
    with pytest.raises(UsageError, match=r"no layer is sensitive[\s\S]*every layer stays in float there"):
        deploykit.sensitivity(torch.nn.Softplus(), "x86-cpu", "synthetic", example_inputs=inputs, progress=False)
    with pytest.raises(CalibrationError, match=r"cannot read [\s\S]*-> check the path") as caught:
        deploykit.sensitivity(model, "x86-cpu", "absent.npz", example_inputs=inputs, progress=False)
    assert "->" not in caught.value.message


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


def test_a_recipe_holds_a_layer_in_eight_bits_beside_four(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
    samples = [torch.randn(4, 64) for _ in range(4)]
    asked = {"example_inputs": (samples[0],), "profile": False, "progress": False, "strict": False}
    narrow = deploykit.export(model, "x86-cpu", "int4-weight-only", output=tmp_path / "narrow", **asked)
    found = deploykit.sensitivity(
        model,
        calibration=samples,
        precision="int4-weight-only",
        rest="int8-weights",
        example_inputs=(samples[0],),
        progress=False,
    )
    (name,) = found.keep(1).kept
    layers = tuple(
        replace(each, precision="int8-weights") if each.name == name else each for each in narrow.recipe.layers
    )
    edited = replace(narrow.recipe, layers=layers)
    wide = deploykit.export(model, recipe=edited, output=tmp_path / "wide", **asked)
    held = {layer.name: layer.precision for layer in wide.achieved.layers if layer.weights}
    assert held == {each: "int8-weights" if each == name else "int4-weights" for each in held} and len(held) == 3
    assert wide.recipe.wider == {name: "held in 8 bits by the recipe"}
    again = deploykit.export(model, recipe=wide.recipe, output=tmp_path / "again", **asked)
    assert again.recipe.layers == wide.recipe.layers
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (tmp_path / "wide" / "model.onnx").read_bytes()
    assert wide.parity.sqnr_db > narrow.parity.sqnr_db
    back = replace(wide.recipe, layers=narrow.recipe.layers)
    assert deploykit.export(model, recipe=back, output=tmp_path / "back", **asked).recipe.wider == {}


def test_tune_holds_layers_in_eight_bits_beside_four(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
    asked = {"example_inputs": (torch.randn(4, 64),), "profile": False, "progress": False}
    start = deploykit.export(model, "x86-cpu", "int4-weight-only", output=tmp_path / "start", strict=False, **asked)
    plan = deploykit.tune(
        model,
        "x86-cpu",
        "int4-weight-only",
        min_sqnr_db=start.parity.sqnr_db + 1.0,
        allow=("mixed",),
        output=tmp_path / "tuned",
        **asked,
    )
    assert plan.recipe.wider and not plan.recipe.kept
    held = {layer.precision for layer in plan.best.achieved.layers if layer.weights}
    assert held == {"int4-weights", "int8-weights"}
