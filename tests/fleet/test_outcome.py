"""What a release says of itself, on disk."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from deploykit.contract.errors import ArtifactError
from deploykit_fleet import release_file
from deploykit_fleet.outcome import Cell, DeviceRun, Failure, Gate, Layer, Metric, Release, artifact_path, read, write


def _cell(status="passed", **changes):
    return Cell(
        **{"model": "net", "target": "x86-cpu", "precision": "int8", "key": "0" * 64, "status": status, **changes}
    )


def _release(*cells):
    return Release(deploykit="1", name="edge", started="2026-01-01T00:00:00Z", host="h", cpu="c", cells=cells)


def test_what_is_written_is_read_back(tmp_path):
    failure = Failure(kind="ParityError", message="m", hint="h", exit_code=6, layers=(Layer(name="conv", sqnr_db=9.5),))
    gate = Gate(name="max_drop", asked=0.01, value=0.02, passed=False)
    metric = Metric(value=0.7, reference=0.72, interval=(0.01, 0.03), samples=100)
    cell = _cell("failed", failure=failure, gates=(gate,), metric=metric, artifact="objects/ab", fingerprint="ab")
    release = _release(_cell(), cell)
    write(release, tmp_path)
    assert read(tmp_path) == release == read(tmp_path / "release.json")
    assert artifact_path(cell, tmp_path) == tmp_path / "objects" / "ab"
    assert artifact_path(_cell(), tmp_path) is None


def test_a_release_of_as_many_cells_as_a_file_may_have_is_read_back(tmp_path):
    gates = tuple(Gate(name=f"gate-{n}", asked=0.5, value=0.25) for n in range(5))
    board = DeviceRun(device="lab", profile={"runs": [round(1.0 + n / 7, 6) for n in range(250)]})
    cells = [_cell(model=f"net-{n}", gates=gates, device=board) for n in range(release_file._MAX_CELLS)]
    write(_release(*cells), tmp_path)
    assert len(read(tmp_path).cells) == len(cells)


def test_the_exit_code_is_that_of_the_first_cell_that_failed():
    first = _cell("failed", failure=Failure(kind="A", message="", exit_code=8))
    assert _release(_cell(), first, _cell("failed", failure=Failure(kind="B", message="", exit_code=6))).exit_code == 8
    assert _release(_cell(), _cell("skipped")).exit_code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d | {"format": 2}, "format 2"),
        (lambda d: {k: v for k, v in d.items() if k != "format"}, "damaged"),
        (lambda d: d | {"cells": [{"model": 1}]}, "damaged"),
        (lambda d: d | {"cells": [d["cells"][0] | {"artifact": "/etc"}]}, "unsafe path"),
        (lambda d: d | {"cells": [d["cells"][0] | {"artifact": "../../../etc"}]}, "unsafe path"),
    ],
)
def test_what_is_damaged_newer_or_unsafe_is_refused(tmp_path, change, says):
    path = write(_release(_cell()), tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ArtifactError, match=says):
        read(tmp_path)


def test_a_folder_without_a_release_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="no release") as caught:
        read(tmp_path)
    assert "deploykit release" in caught.value.hint


def test_fields_of_a_later_version_are_ignored(tmp_path):
    path = write(_release(_cell()), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert read(tmp_path) == _release(_cell())


def test_reading_one_imports_no_framework_and_no_engine():
    code = (
        "import sys, deploykit_fleet, deploykit_fleet.outcome;"
        "assert not {'torch', 'ray', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
