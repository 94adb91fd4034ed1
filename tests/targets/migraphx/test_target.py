"""MIGraphX artifacts as they are made here."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import deploykit
from deploykit.manifest import NEEDS_DEVICE_BUILD
from deploykit.precision import Evidence
from deploykit.registry import toolchain
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets._recipe.target import UNBUILT_NOTE


@pytest.fixture(autouse=True)
def _no_gpu() -> None:
    if Path("/dev/kfd").exists():
        pytest.skip("this machine has an AMD GPU driver: exports may be built at once")


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


def test_what_pip_does_not_have_is_not_offered_as_a_pip_command() -> None:
    (info,) = [found for found in deploykit.targets() if found.name == "amd-mi300x"]
    assert info.export_command == 'pip install "deploykit[migraphx]"'
    assert "pip" not in info.run_command and "ROCm" in info.run_command
