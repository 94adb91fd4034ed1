"""An exported artifact in other places: on a board (this machine behind a stand-in for `ssh`), and as another CPU."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deploykit
from deploykit.cli import main
from deploykit.contract.precision import Evidence
from deploykit.places import Child, Qemu, Ssh

SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
shift 2
export HOME="$BOARD"; cd "$HOME"
exec sh -c "$*"
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    data = [torch.randn(1, 16) for _ in range(16)]
    return deploykit.export(
        model,
        target="x86-cpu",
        precision="int8",
        example_inputs=(data[0],),
        calibration=data,
        output=tmp_path_factory.mktemp("exported") / "model",
        profile=False,
        progress=False,
    )


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a board."""
    home = tmp_path / "home"
    for folder in (home, tmp_path / "bin"):
        folder.mkdir()
    (tmp_path / "bin/ssh").write_text(SSH, encoding="utf-8")
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("BOARD", str(home))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("DEPLOYKIT_BOARD_PYTHON", sys.executable)
    return home


def test_verify_run_and_profile(
    artifact: deploykit.Artifact, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = ["--board", "me@board"]
    assert main(["verify", str(artifact.path), *address, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["metrics"]["max_abs"] == 0 and "over SSH and executes it there" in said.err
    golden = artifact.golden()
    np.savez(tmp_path / "in.npz", **golden.inputs[0])
    files = ["-i", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")]
    assert main(["run", str(artifact.path), *files, *address, "--threads", "1"]) == 0
    with np.load(tmp_path / "out.npz") as outputs:
        assert all(np.array_equal(outputs[name], array) for name, array in golden.outputs[0].items())
    capsys.readouterr()
    assert main(["profile", str(artifact.path), *address, "--seconds", "0.05", "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    assert profile["op_times"] and profile["peak_memory_bytes"] > 1e6
    assert "measured on me@board with its own clock" in profile["notes"][0]
    assert (board / ".cache/deploykit").is_dir()


def test_operators_and_outputs_are_the_same_in_every_place(artifact: deploykit.Artifact, board: Path) -> None:
    feeds = artifact.golden().inputs[0]
    with artifact.open(threads=1) as session:
        here, ops = session.run(feeds), {time.name for time in session.op_times(feeds, runs=2)}
    for place in (Child(), Ssh("board")):
        with artifact.open(threads=1, place=place) as session:
            found = session.run(feeds)
            assert all(np.array_equal(found[name], array) for name, array in here.items())
            assert {time.name for time in session.op_times(feeds, runs=2)} == ops


@pytest.mark.nightly
def test_as_a_cpu_without_vnni(artifact: deploykit.Artifact) -> None:
    """This Python on the emulated CPU: what it would do there is asked there."""
    if shutil.which("qemu-x86_64-static") is None:
        pytest.skip("needs the Debian package qemu-user-static")
    there = artifact.at(Qemu("Haswell"))
    found = there.preflight()
    assert found.ok and not found.host.has("vnni") and "cannot saturate" in found.adapted[0]
    assert there.plugin().evidence(there) is Evidence.EMULATOR
    golden = artifact.golden()
    with there.open(threads=1) as session:
        for name, array in session.run(golden.inputs[0]).items():
            np.testing.assert_allclose(array, golden.outputs[0][name], atol=0.05)  # an LSB of the output, at most
