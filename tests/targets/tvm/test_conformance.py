"""The TVM plugin against the shared contract, on this machine's CPU."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import deploykit
from deploykit.artifact.manifest import MANIFEST_NAME, FileEntry
from deploykit.artifact.storage import sha256_of
from deploykit.plugin.artifact import Artifact
from deploykit.testing import TargetConformance
from deploykit_targets.tvm.build import LIBRARY, METADATA

CRASH = "#include <signal.h>\n__attribute__((constructor)) static void f(void) { raise(SIGSEGV); }\n"


class TestTvm(TargetConformance):
    target = "x86-cpu:tvm"
    at_night = frozenset({"test_caller_model_is_left_alone", "test_several_inputs_and_named_outputs"})

    def test_a_library_that_crashes_as_it_is_loaded_is_a_device_error(
        self, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whole by its hashes, and of the right processor: only opening it shows."""
        monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path))
        copy = Path(shutil.copytree(artifact.path, tmp_path / "copy"))
        library = copy / LIBRARY
        (tmp_path / "crash.c").write_text(CRASH)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "crash.c")], check=True)
        entry = FileEntry(LIBRARY, library.stat().st_size, sha256_of(library))
        files = tuple(entry if each.path == LIBRARY else each for each in artifact.manifest.files)
        facts = artifact.manifest.metadata[METADATA]
        facts = {**facts, "runtime_files": {**facts["runtime_files"], LIBRARY: entry.size}}
        changed = replace(artifact.manifest, files=files, metadata={**artifact.manifest.metadata, METADATA: facts})
        (copy / MANIFEST_NAME).write_bytes(changed.to_json())
        with pytest.raises(deploykit.DeviceError, match=r"copy cannot be opened here.*SIGSEGV"):
            deploykit.load(copy, allow_native=True).open()
