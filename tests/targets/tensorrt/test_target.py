"""TensorRT artifacts as they are made here: what is in them, what they claim, and what they refuse without a device."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest

import deploykit
from deploykit.artifact.golden import golden_tolerance
from deploykit.artifact.manifest import NEEDS_DEVICE_BUILD
from deploykit.contract.precision import Evidence
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.registry import toolchain
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_calibration.table import CalibrationTable
from deploykit_targets._on_device.target import unbuilt_note
from deploykit_targets._onnx.lint import lint, load_rules


def export(output: Path, precision: str = "int8", *, target: str = "jetson-orin", **changes: Any) -> Artifact:
    model, example_inputs = changes.pop("model", models.residual_cnn)()
    arguments = {"calibration": batches(example_inputs)} if precision in ("int8", "mixed", "fp8") else {}
    return deploykit.export(
        model,
        target=target,
        precision=precision,
        example_inputs=example_inputs,
        output=output,
        progress=False,
        **{**arguments, **changes},
    )


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver: exports may be built at once")
    return export(tmp_path_factory.mktemp("orin") / "artifact")


def test_it_carries_all_that_the_board_needs(artifact: Artifact) -> None:
    assert {entry.path for entry in artifact.manifest.files} == {
        "model.onnx",
        "build_engine.py",
        "board.py",
        "blueprint.json",
        "calibration.safetensors",
        "golden.safetensors",
    }
    blueprint = json.loads((artifact.path / "blueprint.json").read_text())
    assert (blueprint["arch"], blueprint["precision"]) == ("sm_87", "int8")
    assert blueprint["inputs"][0]["example"] == [1, 3, 32, 32]
    assert CalibrationTable.load(artifact.path / "calibration.safetensors").samples == 2  # and two are held out


def test_it_says_what_is_left_to_do_and_refuses_to_run_before(artifact: Artifact) -> None:
    build = artifact.manifest.build
    assert artifact.status == NEEDS_DEVICE_BUILD and build is not None
    assert build.command == "deploykit build ."
    assert "jetson-orin" in build.reason and "python3 build_engine.py" in build.reason
    with pytest.raises(deploykit.DeviceError, match="not runnable yet"):
        artifact.open()


def test_parity_is_a_reference_and_says_what_it_does_not_prove(artifact: Artifact) -> None:
    report = artifact.parity
    assert report is not None and report.passed
    assert report.evidence is Evidence.REFERENCE
    assert [(link.reference, link.candidate) for link in report.chain] == [
        ("float PyTorch", "simulated q/dq"),
        ("simulated q/dq", "artifact"),
        ("float PyTorch", "artifact"),
    ]
    assert unbuilt_note(artifact) in report.notes
    assert any("0 finding(s)" in note and "onnx-tensorrt" in note for note in report.notes)
    assert report.chain[1].worst.sqnr_db > 60.0, "the file is the simulated graph up to rounding"


def test_profile_is_an_estimate_and_says_how_it_was_computed(artifact: Artifact) -> None:
    profile = artifact.profile
    assert profile is not None
    assert (profile.evidence, profile.runs, profile.peak_memory_bytes) == (Evidence.ESTIMATE, 0, None)
    assert profile.notes[0].startswith("estimate, not measured: layer time = max(")
    assert any("Deep-Learning-Accelerator-SW" in note for note in profile.notes)
    assert profile.op_times and profile.op_times[0].module_path
    assert profile.worth_it is not None and profile.worth_it > 1.0
    assert profile.baseline == "fp32 artifact", "the evidence is said once, by the profile"


def test_fp8_has_one_name_and_its_own_simulation(tmp_path: Path) -> None:
    """Layers in E4M3 are as asked for, and the file is the simulated graph up to the order of sums."""
    found = export(tmp_path / "a", "fp8", target="h100")
    counted = {layer.precision for layer in found.achieved.layers if not layer.reason}
    assert counted == {"fp8"} and found.achieved.macs_fraction("fp8") > 0.9
    assert not any("computes it in" in layer.reason for layer in found.achieved.layers)
    report = found.parity
    assert report is not None and report.layers
    assert [link.candidate for link in report.chain] == ["simulated q/dq", "artifact", "artifact"]
    assert report.chain[1].worst.sqnr_db > report.chain[0].worst.sqnr_db + 10.0
    profile = found.profile
    assert profile is not None and not any("not published" in note for note in profile.notes)


def test_float32_is_estimated_at_the_rate_of_tf32(tmp_path: Path) -> None:
    """Every GPU that has bfloat16 has TF32, TensorRT's default for float32: half of the rate of float16."""
    for device in toolchain("tensorrt").capabilities().devices.values():
        rates = device.peak_tops
        assert ("tf32" in rates) is ("bf16" in rates)
        assert "tf32" not in rates or rates["tf32"] == pytest.approx(rates["fp16"] / 2, rel=0.03)
    profile = export(tmp_path / "a", target="a100").profile
    assert profile is not None and any("float32 layers use the tf32 rate" in note for note in profile.notes)


def test_golden_outputs_of_float32_are_gated_for_tf32_where_the_gpu_has_it(tmp_path: Path) -> None:
    """TF32 has float16's mantissa: 80 dB, the gate of float32, would refuse every engine of TensorRT's default."""
    gates = {}
    for device in ("a100", "t4"):
        found = export(tmp_path / device, "fp32", target=device, profile=False)
        blueprint = json.loads((found.path / "blueprint.json").read_text())
        gates[device] = blueprint["tolerance"]["min_sqnr_db"]
        assert (
            golden_tolerance(found.manifest.precision, found.manifest.facts.golden_min_sqnr_db).min_sqnr_db
            == gates[device]
        )
        assert any("TF32" in note for note in blueprint.get("notes", ())) is (device == "a100")
    assert gates == {"a100": 40.0, "t4": 80.0}


def test_opset_and_types_are_those_of_the_board(artifact: Artifact, tmp_path: Path) -> None:
    model = onnx.load(str(artifact.entry))
    assert model.opset_import[0].version == 19
    mixed = onnx.load(str(export(tmp_path / "mixed", "mixed", profile=False).entry))
    scales = {node.input[1] for node in mixed.graph.node if node.op_type == "QuantizeLinear"}
    types = {tensor.data_type for tensor in mixed.graph.initializer if tensor.name in scales}
    assert types == {onnx.TensorProto.FLOAT16}, "q/dq and all between them are float16 in mixed precision"


def test_an_older_board_gets_an_older_opset(tmp_path: Path) -> None:
    found = export(tmp_path / "xavier", target="jetson-xavier", profile=False)
    assert onnx.load(str(found.entry)).opset_import[0].version == 17


@pytest.mark.parametrize(
    "model",
    [models.residual_cnn, models.concat_cnn, models.unet_like, models.transformer_encoder],
    ids=lambda m: m.__name__,
)
def test_the_same_graph_passes_both_lints(model: Any, tmp_path: Path) -> None:
    found = export(tmp_path / "a", model=model, profile=False)
    for name in ("tensorrt", "migraphx"):
        assert lint(found.entry, load_rules(name)) == ()
    other = export(tmp_path / "b", target="amd-mi300x", model=model, profile=False)
    if not is_half(found):
        assert found.entry.read_bytes() == other.entry.read_bytes(), "one scheme family, one file"
    rounded = [
        {node.name for node in onnx.load(str(a.entry)).graph.node if "Quantize" in node.op_type} for a in (found, other)
    ]
    assert rounded[0] == rounded[1] != set()


def is_half(artifact: Artifact) -> bool:
    """Whether what is between q/dq nodes is float16."""
    return any(
        tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in onnx.load(str(artifact.entry)).graph.initializer
    )


def test_what_is_between_int8_products_is_float16_where_they_are_products_of_matrices(tmp_path: Path) -> None:
    """By the compiler's listings: an int8 convolution writes float32 whatever the file says, a product its type."""
    transformer = export(tmp_path / "a", model=models.transformer_encoder, profile=False)
    assert is_half(transformer) and transformer.achieved.macs_fraction("int8") > 0.9
    assert json.loads((transformer.path / "blueprint.json").read_text())["between"] == "float16"
    assert not is_half(export(tmp_path / "b", model=models.residual_cnn, profile=False))
    older = export(tmp_path / "c", target="jetson-xavier", model=models.transformer_encoder, profile=False)
    assert not is_half(older), "before TensorRT 10 flags say what is between"


def test_a_model_that_the_parser_lacks_is_refused_with_node_and_rule(tmp_path: Path) -> None:
    import torch

    class Folds(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.fold(x, (8, 8), 2, stride=2)

    with pytest.raises(deploykit.ConversionError, match=r"tensorrt would refuse the model: error \[operator\] Col2Im"):
        deploykit.export(
            Folds(), target="jetson-orin", precision="fp32", example_inputs=(torch.ones(1, 12, 16),),
            output=tmp_path / "never", progress=False,
        )  # fmt: skip


def test_building_here_fails_clearly_and_leaves_nothing(artifact: Artifact) -> None:
    before = sorted(path.name for path in artifact.path.parent.iterdir())
    with pytest.raises(deploykit.DeviceError, match="no NVIDIA driver"):
        deploykit.build(artifact.path)
    assert sorted(path.name for path in artifact.path.parent.iterdir()) == before
    assert deploykit.load(artifact.path).status == NEEDS_DEVICE_BUILD


def test_unknown_build_options_are_refused_before_anything_runs(artifact: Artifact) -> None:
    with pytest.raises(deploykit.UsageError, match="no_such_option"):
        deploykit.build(artifact.path, options={"no_such_option": 1})


def test_options_reach_the_program(tmp_path: Path) -> None:
    found = export(tmp_path / "dla", options={"dla": 1, "workspace_mib": 512, "optimization_level": 4}, profile=False)
    options = json.loads((found.path / "blueprint.json").read_text())["options"]
    assert (options["dla"], options["workspace_mib"], options["optimization_level"]) == (1, 512, 4)
    assert found.manifest.options["dla"] == 1


WRONG = [
    ("jetson-orin-nano", {"dla": 0}, "jetson-orin-nano has no DLA"),
    ("h100", {"dla": 0}, "h100 has no DLA"),
    ("jetson-orin", {"dla": 7}, "has 2 DLA cores.*dla=0 or dla=1"),
    ("jetson-orin", {"dla": -3}, "has 2 DLA cores"),
    ("jetson-orin", {"optimization_level": 99}, "from 0 .* to 5"),
    ("jetson-orin", {"optimization_level": -1}, "from 0 .* to 5"),
    ("jetson-orin", {"workspace_mib": -3}, "1 or more"),
    ("jetson-orin", {"workspace_mib": 0}, "1 or more"),
    ("jetson-orin", {"max_batch": 0}, "1 or more"),
    ("jetson-orin", {"shapes": ["nope"]}, "not NAME=MIN:OPT:MAX"),
    ("t4", {"hardware": "ampere+"}, "older than Ampere.*hardware=none or hardware=same-sm"),
    ("jetson-xavier", {"hardware": "ampere+"}, "older than Ampere.*allowed for jetson-xavier: hardware=none$"),
    ("jetson-orin", {"hardware": "ampere+"}, "runs JetPack"),
    ("jetson-orin", {"hardware": "same-sm"}, "served by TensorRT 10.3"),
    ("jetson-xavier", {"optimization_level": 3}, "served by TensorRT 8.5"),
    ("jetson-xavier", {"version_compatible": True}, "served by TensorRT 8.5"),
    ("t4", {"hardware": "any"}, "any"),
]
ALLOWED = [
    ("jetson-orin", {"dla": 1, "optimization_level": 0, "workspace_mib": 1, "max_batch": 1}),
    ("a100", {"hardware": "ampere+", "optimization_level": 5, "version_compatible": True}),
    ("t4", {"hardware": "same-sm"}),
    ("jetson-xavier", {"dla": 0, "shapes": ["x=1x3:2x3:3x3"]}),
]


def words_of(error: deploykit.DeploykitError) -> str:
    return f"{error.message} {error.hint or ''}".strip()


@pytest.mark.parametrize(("target", "options", "words"), WRONG)
def test_options_that_the_device_cannot_take_are_refused_before_the_model_is_touched(
    target: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(deploykit.UsageError) as caught:
        deploykit.export("no.such:model", target=target, precision="fp16", options=options, output=tmp_path / "never")
    assert re.search(words, words_of(caught.value)), words_of(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("target", "options"), ALLOWED)
def test_options_that_the_device_can_take_are_taken(target: str, options: dict[str, Any]) -> None:
    plugin = toolchain("tensorrt")
    plugin.check_options(plugin.parse_options(options), plugin.capabilities().devices[target])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dla": 7}, "has 2 DLA cores"),
        ({"shapes": ["y=1x3:1x3:1x3"]}, "there is no input 'y'"),
        ({"shapes": ["x=1x3x32x32:1x3x32x32:1x3x32x32"]}, "x has no dynamic axis"),
    ],
)
def test_a_build_checks_them_too(artifact: Artifact, options: dict[str, Any], words: str) -> None:
    with pytest.raises(deploykit.UsageError, match=words):
        deploykit.build(artifact.path, options=options)


def test_shapes_of_what_is_no_dynamic_input_are_refused(tmp_path: Path) -> None:
    for shapes, words in (("y=1x3:1x3:1x3", "no input 'y'"), ("x=1x3x32x32:1x3x32x32:1x3x32x32", "no dynamic axis")):
        with pytest.raises(deploykit.UsageError, match=words):
            export(tmp_path / "never", "fp16", options={"shapes": [shapes]})
    ranges = {"shapes": ["x=1x3x32x32:4x3x32x32:16x3x32x32"]}
    found = export(tmp_path / "a", "fp16", options=ranges, dynamic_batch=True, profile=False)
    assert found.manifest.options["shapes"] == ranges["shapes"]


def test_without_data_only_precisions_of_the_device_are_proposed(tmp_path: Path) -> None:
    for target in ("jetson-orin", "amd-mi300x"):
        with pytest.raises(deploykit.CalibrationError) as caught:
            export(tmp_path / "never", target=target, calibration=None)
        assert 'choose precision="fp16"' in words_of(caught.value) and "dynamic" not in words_of(caught.value)
    with pytest.raises(deploykit.CalibrationError) as caught:
        export(tmp_path / "never", target="x86-cpu", calibration=None)
    assert 'choose precision="int8-dynamic"' in words_of(caught.value)


def test_patterns_are_refused_in_a_precision_of_the_whole_model(tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match="has no effect in fp16: no layer of it is quantised"):
        export(tmp_path / "a", "fp16", exclude=["0"])


def test_a_classifier_narrower_than_a_tile_stays_float_and_says_so(artifact: Artifact) -> None:
    (classifier,) = (layer for layer in artifact.achieved.layers if layer.op == "linear")
    assert classifier.precision == "float32"
    assert classifier.reason == "fewer than 16 inputs or outputs: no faster in int8"
    assert artifact.achieved.macs_fraction("int8") > 0.99


def test_precisions_are_those_of_the_silicon() -> None:
    devices = toolchain("tensorrt").capabilities().devices
    with_fp8 = {name for name, device in devices.items() if "fp8" in device.precisions}
    assert with_fp8 == {"l4", "rtx-4090", "h100", "h200", "b200", "rtx-5090", "jetson-thor"}
    assert {name for name, device in devices.items() if "fp4" in device.features} == {"b200", "rtx-5090", "jetson-thor"}
    assert {name for name, device in devices.items() if "bf16" not in device.precisions} == {
        "t4",
        "jetson-xavier",
        "rtx-2080",
        "rtx-2080-ti",
    }
    assert {name for name, device in devices.items() if device.extra.get("dla_cores")} == {
        "jetson-orin",
        "jetson-orin-nx",
        "jetson-xavier",
    }
