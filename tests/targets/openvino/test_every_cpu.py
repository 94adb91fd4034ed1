"""OpenVINO's int8 artifacts compute what their simulation does on every x86 CPU, and say how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("openvino", reason="these exports run in OpenVINO")

import cpu_cases
from other_cpu import without_vnni

import deploykit
from deploykit.contract.host import this_host

_WITHIN_DB = 1.0
_RIGHT = (
    "linear",
    "attention",
    "conv1d",
    "groups",
    "conv_transpose",
    "two_activations",
    "gru",
    "shared",
    "shared_conv",
)


@pytest.mark.parametrize("target", ["x86-cpu:openvino", "x86-cpu-avx2:openvino"])
@pytest.mark.parametrize("name", _RIGHT)
def test_here(name: str, target: str, tmp_path: Path) -> None:
    artifact = cpu_cases.export(name, target, "int8", tmp_path)
    found = cpu_cases.figures(artifact)
    assert found["artifact"] > found["simulated"] - _WITHIN_DB, found
    in_integers = this_host().has("vnni") or target.startswith("x86-cpu-avx2")
    assert found["evidence"] == ("device" if in_integers else "reference"), found
    assert artifact.verify().sqnr_db > 60.0
    assert artifact.requirements.opset["openvino"] >= 1


def test_without_vnni_and_back(tmp_path: Path) -> None:
    """Made on a CPU without VNNI: right there in float32, which it says, and in integers here."""
    names = ("linear", "attention")
    lines = without_vnni(cpu_cases.__file__, "x86-cpu:openvino", tmp_path, *(f"int8:{n}" for n in names)).splitlines()
    found = {case["name"]: case for case in map(json.loads, lines)}
    assert found.keys() == set(names)
    for name, case in found.items():
        assert case["artifact"] > case["simulated"] - _WITHIN_DB, case
        assert case["evidence"] == "reference"
        assert any("float32" in note and "x86-cpu-avx2:openvino" in note for note in case["notes"]), case
        artifact = deploykit.load(tmp_path / "int8" / name)
        assert artifact.verify().sqnr_db > 60.0
        assert artifact.preflight().native == this_host().has("vnni")
