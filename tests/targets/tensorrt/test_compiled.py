"""Exports through NVIDIA's compiler, where `deploykit[tensorrt-compile]` is installed, and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploykit
from deploykit.contract.devices import Device
from deploykit.contract.precision import Evidence
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.registry import toolchain
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets._tensorrt import compiled, compiler
from deploykit_targets._tensorrt.compiler import NEAREST, NotCompiled, compile_file

needs_compiler = pytest.mark.skipif(
    not compiler.is_installed(), reason="NVIDIA's compiler is not installed: deploykit[tensorrt-compile]"
)
DEVICES = toolchain("tensorrt").capabilities().devices


def export(output: Path, model: Any = None, *, target: str = "jetson-orin", precision: str = "int8") -> Artifact:
    found, inputs = models.residual_cnn() if model is None else model
    return deploykit.export(
        found,
        target=target,
        precision=precision,
        example_inputs=inputs,
        calibration=batches(inputs) if precision in ("int8", "mixed", "fp8") else None,
        output=output,
        profile=False,
        progress=False,
    )


@needs_compiler
def test_an_export_is_compiled_and_says_by_whom_for_what_and_what_that_does_not_prove(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a")
    report = artifact.parity
    assert artifact.evidence is artifact.achieved.evidence is Evidence.COMPILED
    assert report is not None and report.evidence is Evidence.REFERENCE, "no compiler computes outputs"
    assert any("compiled for sm_86, the nearest to the device's sm_87" in note for note in report.notes)
    assert any("nothing was run on the device" in note for note in report.notes)
    assert artifact.achieved.macs_fraction("int8") > 0.9
    facts = artifact.manifest.metadata["compiled"]
    assert (facts["arch"], facts["device_arch"], facts["findings"]) == ("sm_86", "sm_87", [])
    assert facts["summary"].startswith("NVIDIA's compiler: ") and facts["summary"] in artifact.achieved.notes


@needs_compiler
def test_min_placement_counts_what_the_compiler_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that multiplied everything in float would miss the gate, whatever the file asks for."""
    listing = compiler.parse_listing
    monkeypatch.setattr(
        compiler, "parse_listing", lambda text: listing(text.replace("Datatype: Int8", "Datatype: Half"))
    )
    with pytest.raises(deploykit.PlacementError, match="nothing runs in int8"):
        export(tmp_path / "a")


@needs_compiler
@pytest.mark.parametrize("precision", ["fp16", "fp32", "mixed"])
def test_other_precisions_are_compiled_too(precision: str, tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", precision=precision)
    assert artifact.evidence is Evidence.COMPILED
    asked = {"fp16": "float16", "fp32": "float32", "mixed": "int8"}[precision]
    assert artifact.achieved.macs_fraction(asked) > 0.9


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.relu(x))


def test_the_compilers_refusal_names_node_module_and_source_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        message = "TensorRT's parser refuses model.onnx: at least 2 dimensions are required (node 3: Relu relu)"
        raise deploykit.ConversionError(message)

    monkeypatch.setattr(compiled, "compile_file", refuse)
    with pytest.raises(deploykit.ConversionError, match="at least 2 dimensions") as caught:
        export(tmp_path / "a", (Rectified(), (torch.randn(4, 32),)))
    assert "compiler refuses relu (aten.relu.default in the root module" in str(caught.value)
    assert "test_compiled.py:" in str(caught.value) and "exclude=" in str(caught.value)
    assert not (tmp_path / "a").exists()


@needs_compiler
def test_a_broken_file_is_refused_by_the_real_parser_with_its_node(tmp_path: Path) -> None:
    import onnx

    artifact = export(tmp_path / "a")
    model = onnx.load(artifact.entry)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.op_type = "NoSuchOperator"
    onnx.save(model, artifact.entry)
    with pytest.raises(deploykit.ConversionError, match=rf"refuses model.onnx: .*{conv.name}"):
        compile_file(artifact.path, DEVICES["jetson-orin"])


def test_without_the_compiler_evidence_stays_reference_and_one_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "is_installed", lambda: False)
    artifact = export(tmp_path / "a")
    assert artifact.evidence is Evidence.REFERENCE and artifact.achieved.evidence is None
    (line,) = (note for note in artifact.achieved.notes if "compile" in note)
    assert 'pip install "deploykit[tensorrt-compile]"' in line
    assert "compiled" not in artifact.manifest.metadata


@pytest.mark.parametrize(
    ("words", "plugin"),
    [
        ("ROIAlign plugin was not found in the plugin registry! (node 0)", "RoiAlign"),
        (
            "Plugin not found, are the plugin name, version, and namespace correct? (node 3: DeformConv offset)",
            "DeformConv",
        ),
        ("Unsupported reduction type (node 2: ScatterElements scatter)", "reductions of ScatterElements"),
        ("Plugin not found, are the plugin name, version, and namespace correct? (node 3: Unheard y)", None),
    ],
)
def test_a_plugin_that_only_tensorrt_ships_is_no_refusal(
    words: str, plugin: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise deploykit.ConversionError(words)

    monkeypatch.setattr(compiler, "is_installed", lambda: True)
    monkeypatch.setattr(compiler, "_compile", refuse)
    if plugin is None:
        with pytest.raises(deploykit.ConversionError, match="Unheard"):
            compile_file(tmp_path, DEVICES["jetson-orin"])
    else:
        found = compile_file(tmp_path, DEVICES["jetson-orin"])
        assert isinstance(found, NotCompiled) and f"a plugin for {plugin}" in found.reason


def test_a_crash_of_the_compiler_is_a_conversion_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "build_engine.py").write_text("import os\nos.abort()\n")
    monkeypatch.setattr(compiler, "is_installed", lambda: True)
    with pytest.raises(deploykit.ConversionError, match="crashed over the model"):
        compile_file(tmp_path, DEVICES["jetson-orin"])


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_every_device_has_a_near_architecture_or_a_reason(device: Device, tmp_path: Path) -> None:
    if device.arch in NEAREST:
        assert int(NEAREST[device.arch].removeprefix("sm_")) >= 75
    else:
        found = compile_file(tmp_path, device)
        assert isinstance(found, NotCompiled) and device.arch in found.reason
