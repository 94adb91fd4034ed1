"""MIGraphX artifacts as they are made here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

import deploykit
from deploykit.artifact.manifest import NEEDS_DEVICE_BUILD
from deploykit.contract.achieved import Achieved
from deploykit.contract.installed import here_command
from deploykit.contract.precision import Evidence
from deploykit.plugin.registry import toolchain
from deploykit.plugin.target import Payload
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets._on_device.portable import _finished
from deploykit_targets._on_device.target import UNBUILT_NOTE
from deploykit_targets.migraphx import build_model, session
from deploykit_targets.migraphx.convert import arguments_of
from deploykit_targets.migraphx.target import MigraphxOptions


@pytest.fixture(autouse=True)
def _no_gpu() -> None:
    if Path("/dev/kfd").exists():
        pytest.skip("this machine has an AMD GPU driver: exports may be built at once")


def test_recurrent_layers_are_written_out_where_they_are_quantized(tmp_path: Path) -> None:
    model, example_inputs = models.lstm_classifier()
    artifact = deploykit.export(
        model, target="amd-mi300x", precision="int8", example_inputs=example_inputs,
        calibration=batches(example_inputs), output=tmp_path / "a", progress=False,
    )  # fmt: skip
    assert artifact.achieved.macs_fraction("int8") > 0.8, "all but what has few weights"
    assert {node.op_type for node in onnx.load(artifact.entry).graph.node}.isdisjoint({"LSTM"})


def test_an_int8_artifact_waits_for_its_build_and_says_so(tmp_path: Path) -> None:
    model, example_inputs = models.residual_cnn()
    artifact = deploykit.export(
        model, target="amd-mi300x", precision="int8", example_inputs=example_inputs,
        calibration=batches(example_inputs), output=tmp_path / "a", progress=False,
    )  # fmt: skip
    assert artifact.status == NEEDS_DEVICE_BUILD
    assert artifact.manifest.build is not None and "python3 build_model.py" in artifact.manifest.build.reason
    assert artifact.parity is not None and artifact.parity.evidence is Evidence.REFERENCE
    assert UNBUILT_NOTE in artifact.parity.notes
    assert artifact.profile is not None and artifact.profile.evidence is Evidence.ESTIMATE
    assert artifact.achieved.macs_fraction("int8") > 0.99
    with pytest.raises(deploykit.DeviceError, match="no AMD GPU driver"):
        deploykit.build(artifact.path)


def test_bfloat16_is_a_float32_file_referenced_in_bfloat16(tmp_path: Path) -> None:
    model, example_inputs = models.residual_cnn()
    artifact = deploykit.export(
        model, target="amd-mi300x", precision="bf16", example_inputs=example_inputs,
        output=tmp_path / "a", progress=False, profile=False,
    )  # fmt: skip
    assert {tensor.data_type for tensor in onnx.load(str(artifact.entry)).graph.initializer} <= {1, 7}
    assert artifact.parity is not None and 30.0 < artifact.parity.sqnr_db < 60.0, "8 bits of mantissa are some 50 dB"


def test_fp8_only_where_the_silicon_has_it() -> None:
    devices = toolchain("migraphx").capabilities().devices
    assert {name: device.extra["fp8"] for name, device in devices.items() if "fp8" in device.precisions} == {
        "amd-mi300x": "fnuz",
        "amd-rx9070xt": "fn",
    }


def test_fp8_is_converted_to_what_the_silicon_has_and_says_so(tmp_path: Path) -> None:
    model, example_inputs = models.residual_cnn()
    for target, words in (("amd-mi300x", "gfx942 computes in E4M3FNUZ"), ("amd-rx9070xt", "which gfx1201 computes in")):
        artifact = deploykit.export(
            model, target=target, precision="fp8", example_inputs=example_inputs,
            calibration=batches(example_inputs), output=tmp_path / target, progress=False, profile=False,
        )  # fmt: skip
        (note,) = json.loads((artifact.path / "blueprint.json").read_text())["notes"]
        assert words in note and artifact.manifest.metadata["notes"] == [note]
        assert artifact.parity is not None and note in artifact.parity.notes
        types = {tensor.data_type for tensor in onnx.load(str(artifact.entry)).graph.initializer}
        assert onnx.TensorProto.FLOAT8E4M3FN in types and onnx.TensorProto.FLOAT8E4M3FNUZ not in types


def test_scales_computed_for_448_do_not_overflow_in_fnuz() -> None:
    """MIGraphX reads the same bits as FNUZ and doubles the scale: exact for every number, after its source."""
    bits = np.arange(256, dtype=np.uint8)
    fn, fnuz = (bits.view(kind).astype(np.float32) for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz))
    special = np.isin(bits, (0x80, 0x7F, 0xFF))  # -0 and NaN, which the pass maps one by one
    np.testing.assert_array_equal(fn[~special], 2 * fnuz[~special])
    assert fn[~special].max() == 448.0 and fnuz[~special].max() == 224.0, "below 240"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "onnxruntime", "fast_math": True}, "always turns it off"),
        ({"runtime": "rocm"}, "rocm"),
        ({"max_batch": 0}, "1 or more"),
        ({"shapes": ["nope"]}, "not NAME=MIN:OPT:MAX"),
    ],
)
def test_options_that_would_be_ignored_are_refused_at_once(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match=words):
        deploykit.export("no.such:model", "amd-mi300x", "fp16", options=options, output=tmp_path / "never")


def test_an_option_of_the_build_wins_over_that_of_the_export() -> None:
    arguments = arguments_of(MigraphxOptions(exhaustive_tune=False, fast_math=True))
    given = build_model.parse(arguments, {"exhaustive_tune": True, "fast_math": False})
    assert (given.exhaustive_tune, given.fast_math) == (False, True)


@pytest.mark.parametrize(("entry", "runtime"), [("model.onnx", "onnxruntime"), ("model.mxr", "migraphx")])
def test_a_build_needs_only_the_runtime_it_was_built_for(
    entry: str, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver and the search for interpreters are fakes: only ONNX Runtime is found."""
    plugin = toolchain("migraphx")
    monkeypatch.setattr(session, "_DRIVER", tmp_path)
    monkeypatch.setattr(session, "interpreter_where", lambda code, *_: "python" if "onnxruntime" in code else None)
    artifact = SimpleNamespace(entry=tmp_path / entry)
    if runtime == "onnxruntime":
        plugin.check_runnable(artifact)
    else:
        with pytest.raises(deploykit.MissingDependencyError, match="migraphx"):
            plugin.check_runnable(artifact)


def test_a_build_is_recorded_with_the_version_of_what_runs_it() -> None:
    report = {
        "device": "d", "arch": "gfx942", "runtime": "onnxruntime", "onnxruntime": "1.31.1", "layers": [],
        "layers_source": "", "log": "",
    }  # fmt: skip
    planned = Achieved.count("int8", (), source="plan")
    made = _finished(Payload("model.onnx", planned, {}), "model.onnx", "migraphx", report)
    assert made.tool_versions == {"onnxruntime": "1.31.1"}
    assert made.metadata["built_on"]["onnxruntime"] == "1.31.1" and "migraphx" not in made.metadata["built_on"]


def test_what_pip_does_not_have_is_not_offered_as_a_pip_command() -> None:
    (info,) = [found for found in deploykit.targets() if found.name == "amd-mi300x"]
    assert info.export_command == here_command("migraphx")
    assert "pip" not in info.run_command and "ROCm" in info.run_command
