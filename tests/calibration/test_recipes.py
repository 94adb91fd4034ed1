"""Following a recipe on a graph: to the letter, edited, of other weights, and of another graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploykit
from deploykit import pipeline
from deploykit.contract.recipe import AlgorithmStep, LayerChoice, RangeChoice, Recipe

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]


def net(seed: int = 0, *, width: int = 8, bare: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    middle = () if bare else (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
    layers = (nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), *middle, nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * width, 5)).eval()


def export(model: Any, output: Path, **arguments: Any) -> deploykit.Artifact:
    arguments = {"calibration": DATA, "min_placement": 0.0, **arguments}
    return deploykit.export(model, example_inputs=(X,), output=output, profile=False, progress=False, **arguments)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    return export(net(), tmp_path_factory.mktemp("first") / "a")


def recipe_in(artifact: deploykit.Artifact) -> Recipe:
    assert artifact.recipe is not None
    return artifact.recipe


def edited(recipe: Recipe, name: str, precision: str, reason: str = "") -> Recipe:
    layers = [replace(e, precision=precision, reason=reason) if e.name == name else e for e in recipe.layers]
    return replace(recipe, layers=tuple(layers))


def bytes_of(artifact: deploykit.Artifact) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in artifact.path.iterdir()}


def prepared(recipe: Recipe, model: nn.Module | None = None) -> Any:
    captured = pipeline.capture(model or net(), example_inputs=(X,))
    request = pipeline.request(recipe.target, recipe.precision, recipe=recipe)
    return pipeline.prepare(request, captured, pipeline.calibrate(captured, DATA, progress=False))


def scales_of(made: Any) -> dict[str, float]:
    nodes = made.graph_module.graph.nodes
    return {node.name: node.args[1] for node in nodes if node.op == "call_function" and node.name.endswith("_q")}


def test_every_artifact_has_one_and_it_makes_the_same_bytes(first: deploykit.Artifact, tmp_path: Path) -> None:
    recipe = recipe_in(first)
    assert [e.name for e in recipe.layers if e.precision == "int8" and e.kind == "conv"] == ["conv2d", "conv2d_1"]
    assert first.manifest.fingerprints["recipe"] == recipe.fingerprint
    recipe.write(tmp_path / "net.toml")
    once = export(net(), tmp_path / "b", recipe=recipe)
    again = export(net(), tmp_path / "c", recipe=tmp_path / "net.toml")
    assert bytes_of(first) == bytes_of(once) == bytes_of(again)


@pytest.mark.parametrize("target", ["jetson-orin", "tensorrt-rtx", "migraphx", "android", "iphone-15"])
def test_a_recipe_with_lists_among_its_options_is_followed_to_the_letter(target: str, tmp_path: Path) -> None:
    """Options are tuples, and lists in a file: a recipe was said to be edited, and its ladder was dropped."""
    needs = {"android": "ai_edge_litert", "iphone-15": "coremltools"}
    pytest.importorskip(needs.get(target, "onnxruntime"), reason="its converter is not installed")
    made = export(net(bare=True), tmp_path / "a", target=target, strict=False)
    assert any(isinstance(value, list) for value in recipe_in(made).options.values())
    recipe_in(made).write(tmp_path / "net.toml")
    for number, recipe in enumerate((recipe_in(made), tmp_path / "net.toml")):
        again = export(net(bare=True), tmp_path / f"b{number}", target=target, recipe=recipe, strict=False)
        assert again.fingerprint == made.fingerprint


def test_what_is_chosen_besides_is_in_it(tmp_path: Path) -> None:
    made = export(net(), tmp_path / "a", calibration_method="percentile:99.9", exclude=["2"], options={"opset": 20})
    recipe = recipe_in(made)
    assert (recipe.method, recipe.exclude, recipe.options["opset"]) == ("percentile:99.9", ("2",), 20)
    assert bytes_of(made) == bytes_of(export(net(), tmp_path / "b", recipe=recipe))


def test_best_is_followed_by_what_it_chose(tmp_path: Path) -> None:
    made = export(net(), tmp_path / "a", calibration_method="best")
    assert recipe_in(made).method != "best"
    assert "best" not in [step.name for step in recipe_in(made).algorithms]
    assert bytes_of(made) == bytes_of(export(net(), tmp_path / "b", recipe=recipe_in(made)))


def test_an_edited_layer_stays_float_with_its_reason(first: deploykit.Artifact, tmp_path: Path) -> None:
    asked = replace(edited(recipe_in(first), "conv2d_1", "float", "shaky"), exclude=())
    made = export(net(), tmp_path / "a", recipe=asked)
    assert [(e.name, e.reason) for e in made.achieved.not_as_requested if e.op == "conv"] == [("conv2d_1", "shaky")]
    assert not made.achieved.not_as_requested[0].by_request  # so that the placement gate counts it
    assert recipe_in(made).kept == {"conv2d_1": "shaky"}
    assert any("it was edited" in note for note in made.manifest.facts.notes)
    back = edited(recipe_in(made), "conv2d_1", "int8")
    assert all(layer.precision == "int8" for layer in prepared(back).layers if layer.kind == "conv")


def test_a_layer_that_the_scheme_keeps_float_is_refused(first: deploykit.Artifact, tmp_path: Path) -> None:
    excluded = recipe_in(export(net(), tmp_path / "a", exclude=["2"]))
    with pytest.raises(deploykit.UsageError, match=r"conv2d_1 .* in int8, which it cannot have: excluded by pattern"):
        prepared(edited(excluded, "conv2d_1", "int8"))
    with pytest.raises(deploykit.UsageError, match="a layer of int8 is int8, float or float32"):
        prepared(edited(recipe_in(first), "conv2d_1", "int3"))


def test_a_range_of_one_tensor(first: deploykit.Artifact) -> None:
    plain = prepared(recipe_in(first))
    other = prepared(replace(recipe_in(first), ranges=(RangeChoice("relu", "percentile:90"),)))
    scales = [scales_of(plain), scales_of(other)]
    assert {name for name in scales[0] if scales[0][name] != scales[1][name]} == {"relu_q"}
    for wrong in (RangeChoice("relu", "guess"), RangeChoice("relu_77", "mse")):
        with pytest.raises(deploykit.UsageError, match=r"guess|relu_77"):
            prepared(replace(recipe_in(first), ranges=(wrong,)))


def test_algorithms_are_those_it_names(first: deploykit.Artifact) -> None:
    assert [step.name for step in recipe_in(first).algorithms] == ["bias-correction"]
    assert prepared(recipe_in(first)).corrects_bias
    assert not prepared(replace(recipe_in(first), algorithms=())).corrects_bias
    for step, says in ((AlgorithmStep("bias-correction", "7"), "version 7"), (AlgorithmStep("magic"), "no algorithm")):
        with pytest.raises(deploykit.UsageError, match=says):
            prepared(replace(recipe_in(first), algorithms=(step,)))
    with pytest.raises(deploykit.UsageError, match="as the settings of"):
        prepared(replace(recipe_in(first), algorithms=(AlgorithmStep("bias-correction", "1", {"a": 1}),)))
    with pytest.raises(deploykit.UsageError, match="'share' as decided by bias-correction"):
        prepared(replace(recipe_in(first), algorithms=(AlgorithmStep("bias-correction", decided={"share": 1}),)))


def test_other_weights_are_followed_and_said(first: deploykit.Artifact, tmp_path: Path) -> None:
    made = export(net(seed=1), tmp_path / "a", recipe=recipe_in(first))
    assert any("other weights" in note for note in made.manifest.facts.notes)
    assert recipe_in(made).model.fingerprint != recipe_in(first).model.fingerprint
    other = export(net(), tmp_path / "b", recipe=recipe_in(first), calibration=DATA[:6])
    assert any("other calibration data" in note for note in other.manifest.facts.notes)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (net(bare=True), "the model has no more: conv2d_1 .conv of 2.*linear .linear of 6. is now"),
        (net(width=16), "shapes of weights"),
        (nn.Sequential(*net(), nn.Linear(5, 4)).eval(), "the recipe does not know: linear_1 .linear of 7"),
    ],
)
def test_another_graph_is_refused_with_the_difference(
    first: deploykit.Artifact, model: nn.Module, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit_calibration.observe._observed", None)  # before any data is read
    with pytest.raises(deploykit.UsageError, match=says):
        export(model, tmp_path / "a", recipe=recipe_in(first))
    assert not list(tmp_path.iterdir())


def test_a_target_that_was_edited_is_told_by_what_does_not_fit(first: deploykit.Artifact, tmp_path: Path) -> None:
    moved = replace(recipe_in(first), target="jetson-orin:tensorrt")
    with pytest.raises(deploykit.UsageError, match=r"options that tensorrt does not take \(unknown option ") as caught:
        export(net(), tmp_path / "a", recipe=moved)
    assert "deploykit.tune" in caught.value.hint
    made = export(net(), tmp_path / "b", recipe=replace(recipe_in(first), target="x86-cpu-avx2:onnxruntime"))
    said = "it is of the scheme onnx-x86, and this target has onnx-x86-no-vnni"
    assert any(said in note for note in made.manifest.facts.notes)


def test_what_a_recipe_decides_is_not_said_twice(first: deploykit.Artifact, tmp_path: Path) -> None:
    recipe = recipe_in(first)
    given: list[dict[str, Any]] = [{"precision": "fp16"}, {"exclude": ["2"]}, {"calibration_method": "mse"}]
    given += [{"algorithms": ["best"]}, {"options": {"opset": 19}}, {"target": "jetson-orin"}, {"recipe": 5}]
    for arguments in given:
        with pytest.raises(deploykit.UsageError, match="recipe"):
            export(net(), tmp_path / "a", **{"recipe": recipe, **arguments})


def test_a_precision_without_layers_to_choose_refuses_the_choice(tmp_path: Path) -> None:
    whole = recipe_in(export(net(), tmp_path / "a", precision="fp32", calibration=None))
    assert {layer.precision for layer in whole.layers} == {"float"} and whole.kept == {}
    layer = whole.layers[0]
    chosen = LayerChoice(layer.name, layer.module_path, layer.kind, "float", "no", chosen=True)
    with pytest.raises(deploykit.UsageError, match="none to choose"):
        prepared(replace(whole, layers=(chosen, *whole.layers[1:])))
