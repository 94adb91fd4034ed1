"""A .tflite of others is opened in a child first: LiteRT aborts on some damaged files, and the caller must not."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import deploykit
from deploykit.artifact.manifest import MANIFEST_NAME
from deploykit.artifact.storage import sha256_of
from deploykit.places import place
from deploykit.testing import models

pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    module, example = models.mlp()
    output = tmp_path_factory.mktemp("damaged") / "a"
    return deploykit.export(
        module, "android", "fp32", example_inputs=example, output=output, profile=False, progress=False
    )


def forged(artifact: deploykit.Artifact, folder: Path, data: bytes) -> deploykit.Artifact:
    """A copy with another file, whose hash the manifest has."""
    shutil.copytree(artifact.path, folder)
    file = folder / artifact.manifest.entry
    file.write_bytes(data)
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    entry = next(entry for entry in manifest["files"] if entry["path"] == artifact.manifest.entry)
    entry.update(size=len(data), sha256=sha256_of(file))
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return deploykit.load(folder)


def test_only_what_others_wrote_needs_a_child(
    artifact: deploykit.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    opened = tmp_path / "cache" / "opened"
    artifact.open(threads=1).close()
    assert not opened.exists(), "this process wrote it"
    theirs = forged(artifact, tmp_path / "theirs", artifact.entry.read_bytes() + bytes(16))
    for _ in range(2):
        theirs.open(threads=1).close()
    assert len(list(opened.iterdir())) == 1, "opened in a child once, and remembered"


def test_a_reader_that_aborts_ends_its_child_alone(
    artifact: deploykit.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    theirs = forged(artifact, tmp_path / "theirs", artifact.entry.read_bytes() + bytes(8))
    monkeypatch.setattr(place, "SERVER", "tests_that_abort")
    (tmp_path / "tests_that_abort.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(deploykit.DeviceError, match=r"theirs cannot be opened here.*SIGABRT"):
        theirs.open(threads=1)
