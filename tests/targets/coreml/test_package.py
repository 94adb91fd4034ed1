"""The canonical package: equal bytes in every process, nothing in it that is not the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conversions import NEEDS_COREMLTOOLS, convert

from deploykit.contract.precision import Precision
from deploykit.testing import models
from deploykit_targets.coreml import package
from deploykit_targets.coreml.mil_evaluator import load
from deploykit_targets.coreml.mil_evaluator.milproto import import_coremltools

pytestmark = NEEDS_COREMLTOOLS

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_package import write_all
write_all(Path(sys.argv[2]))
"""


def write_all(root: Path) -> None:
    """Convert models that use weights of every kind, and one in the old form."""
    for name, precision, form in (
        ("residual_cnn", "int8-weight-only", "mlprogram"),
        ("transformer_encoder", "fp16", "mlprogram"),
        ("mlp", "int4-palette", "mlprogram"),
        ("lstm_classifier", "int8-weight-only", "neuralnetwork"),
    ):
        folder = root / name
        folder.mkdir(parents=True)
        convert(models.ZOO[name](), folder, precision=Precision(precision), options={"form": form})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.nightly
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """This process, whatever its hash seed is, and one of its own with another."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "other")]
    environment = {**os.environ, "PYTHONHASHSEED": "271828"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as other:
        write_all(tmp_path / "this")
        printed, _ = other.communicate(timeout=300)
    assert other.returncode == 0, printed.decode()
    first, second = contents(tmp_path / "this"), contents(tmp_path / "other")
    assert len(first) == 10
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_package_holds_the_model_and_nothing_else(tmp_path: Path) -> None:
    convert(models.mlp(), tmp_path)
    folder = tmp_path / "model.mlpackage"
    assert contents(folder).keys() == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }
    manifest = json.loads((folder / "Manifest.json").read_text())
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    assert root["path"] == "com.apple.CoreML/model.mlmodel"
    assert {item["name"] for item in manifest["itemInfoEntries"].values()} == {"model.mlmodel", "weights"}
    specification = (folder / "Data" / root["path"]).read_bytes()
    for stranger in (b"conversion_date", str(Path.home()).encode(), str(tmp_path).encode(), b"site-packages", b".py"):
        assert stranger not in specification


def test_coremltools_itself_reads_the_package(tmp_path: Path) -> None:
    tools = import_coremltools()
    convert(models.mlp(), tmp_path, precision=Precision.FP32)
    model = tools.models.MLModel(str(tmp_path / "model.mlpackage"), skip_model_load=True)
    assert [entry.name for entry in model.get_spec().description.input] == ["input"]
    assert load(tmp_path / "model.mlpackage").ops()["linear"] == 3


def test_other_weights_give_other_identifiers(tmp_path: Path) -> None:
    manifests = []
    for scale in (1.0, 2.0):
        model, example = models.mlp()
        next(model.parameters()).data.mul_(scale)
        folder = tmp_path / str(scale)
        folder.mkdir()
        convert((model, example), folder)
        manifests.append((folder / "model.mlpackage" / "Manifest.json").read_text())
    assert manifests[0] != manifests[1]


def test_numbered_constants_are_renamed_wherever_they_are_read(tmp_path: Path) -> None:
    """coremltools numbers them in an order that changes with a process's memory; names of other values stay."""
    tools = import_coremltools()
    proto = tools.proto.Model_pb2.Model()
    block = proto.mlProgram.functions["main"].block_specializations["CoreML7"]

    def constant(name: str) -> None:
        op = block.operations.add(type="const")
        op.outputs.add(name=name)
        op.attributes["name"].immediateValue.tensor.strings.values.append(name)

    constant("const_9")
    constant("weight")
    constant("const_4")
    reader = block.operations.add(type="cond")
    reader.outputs.add(name="const_0")  # another op's output may have such a name
    reader.inputs["x"].arguments.add(name="const_4")
    reader.inputs["y"].arguments.add(name="weight")
    reader.blocks.add().outputs.append("const_9")
    block.outputs.append("const_4")
    package._number_constants(block)
    assert [op.outputs[0].name for op in block.operations] == ["const_1", "weight", "const_2", "const_0"]
    assert block.operations[2].attributes["name"].immediateValue.tensor.strings.values == ["const_2"]
    assert reader.inputs["x"].arguments[0].name == "const_2" and reader.inputs["y"].arguments[0].name == "weight"
    assert reader.blocks[0].outputs == ["const_1"] and block.outputs == ["const_2"]
