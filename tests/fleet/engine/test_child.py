"""What a worker's environment has."""

from __future__ import annotations

import os
import sys
import sysconfig

from deploykit_fleet.engine.child import importable


def test_a_worker_finds_what_this_process_finds_and_a_program_of_another_python_is_not_misled(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", str(tmp_path / "absent"), *sys.path])
    path = importable({"PYTHONPATH": "gone", "A": "b"})["PYTHONPATH"].split(os.pathsep)
    assert path[0] == str(tmp_path) and importable({"A": "b"})["A"] == "b"
    assert sysconfig.get_path("stdlib") not in path and not [entry for entry in path if "site-packages" in entry]
    assert "" not in path and str(tmp_path / "absent") not in path
