"""The canonical package: equal bytes in every process, nothing in it that is not the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from conversions import NEEDS_COREMLTOOLS, convert

from deploykit.precision import Precision
from deploykit.testing import models
from deploykit_targets.coreml.mil_evaluator import load
from deploykit_targets.coreml.mil_evaluator._milproto import import_coremltools

pytestmark = NEEDS_COREMLTOOLS

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conversions import convert
from deploykit.precision import Precision
from deploykit.testing import models
for name, precision in (("residual_cnn", "int8-weight-only"), ("transformer_encoder", "fp16"), ("mlp", "int4-palette")):
    folder = Path(sys.argv[2]) / name
    folder.mkdir(parents=True)
    convert(models.ZOO[name](), folder, precision=Precision(precision))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, here, str(tmp_path / seed)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.returncode == 0, done.stderr
    first, second = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert len(first) == 9
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_package_holds_the_model_and_nothing_else(tmp_path: Path) -> None:
    convert(models.mlp(), tmp_path)
    package = tmp_path / "model.mlpackage"
    assert contents(package).keys() == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }
    manifest = json.loads((package / "Manifest.json").read_text())
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    assert root["path"] == "com.apple.CoreML/model.mlmodel"
    assert {item["name"] for item in manifest["itemInfoEntries"].values()} == {"model.mlmodel", "weights"}
    specification = (package / "Data" / root["path"]).read_bytes()
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
