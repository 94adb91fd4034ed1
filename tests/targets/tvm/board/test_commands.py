"""The command line and the Python API on a (fake) board, with an exported model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.contract.errors import UsageError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not all(map(shutil.which, ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"))):
        pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static")
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(16, 10)).eval()
    data = [torch.randn(1, 3, 16, 16) for _ in range(8)]
    output = tmp_path_factory.mktemp("exported") / "pi"
    return deploykit.export(
        model, target="raspberry-pi-5", precision="int8", example_inputs=data[0], calibration=data, output=output
    )


def test_the_export_was_verified_under_emulation_and_its_speed_is_an_estimate(artifact: Any) -> None:
    assert artifact.target == "raspberry-pi-5" and artifact.manifest.toolchain == "tvm"
    assert artifact.parity.evidence == "emulator" and artifact.parity.passed
    assert artifact.profile.evidence == "estimate" and artifact.profile.worth_it > 1
    assert artifact.achieved.macs_fraction("int8") == 1


def test_verify(artifact: Any, fake_board: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(artifact.path), "--board", "pi@board", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["verified"]
    assert "copies a program to pi@board over SSH and executes it there" in said.err


def test_run(artifact: Any, fake_board: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = artifact.golden()
    np.savez(tmp_path / "in.npz", **golden.inputs[0])
    files = ["-i", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")]
    assert main(["run", str(artifact.path), *files, "--board", "board", "--threads", "2"]) == 0
    with np.load(tmp_path / "out.npz") as outputs:
        for name, expected in golden.outputs[0].items():
            assert np.array_equal(outputs[name], expected)


def test_profile_is_what_the_board_measured(artifact: Any, fake_board: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The board is a fake, and so are its figures: only that they come from there is checked."""
    command = ["profile", str(artifact.path), "--board", "board", "--seconds", "0.05", "--json"]
    assert main(command) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    assert profile["evidence"] == "device" and profile["threads"] == 2 and profile["runs"] >= 20
    assert profile["host"]["arch"] == "aarch64" and profile["op_times"]
    assert any("measured on board with its own clock" in note for note in profile["notes"])


def test_from_python(artifact: Any, fake_board: Any) -> None:
    there = artifact.on_board("pi@board")
    golden = artifact.golden()
    with there.open() as session:
        assert session.threads == 2
        for feeds, expected in zip(golden.inputs, golden.outputs, strict=True):
            assert all(np.array_equal(session.run(feeds)[name], array) for name, array in expected.items())
    assert there.verify().sqnr_db >= 30


def test_an_unreachable_board(artifact: Any, fake_board: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_board.have(fault="unreachable")
    assert main(["verify", str(artifact.path), "--board", "board"]) == 10
    assert "board cannot be reached" in capsys.readouterr().err


def test_what_is_no_address(artifact: Any) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        artifact.on_board("-oProxyCommand=x").open()
