"""`deploykit device add|list|run|release`, against a real sshd."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.cli import main
from deploykit.testing.loopback import ADDRESS, Loopback
from deploykit_fleet.devices import Entry, Registry


def said(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_add_list_run_and_release(
    toy: Any, loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPLOYKIT_BOARD_PYTHON")
    added = said(capsys, 0, "device", "add", "lab", ADDRESS, "--python", sys.executable)
    found = added["device"]["found"]
    assert found["os"] == "Linux" and found["cores"] >= 1 and found["memory_bytes"] > 1 << 28 and found["deploykit"]
    assert found["python"].startswith("3.") and set(found["sensors"]) | set(found["absent"]) == {
        "temperature",
        "clock",
        "throttling",
    }
    listed = said(capsys, 0, "device", "list")
    assert listed["devices"] == [added["device"]] and added["device"]["target"] == ""
    assert listed["path"] == str(tmp_path / "devices.toml")
    assert main(["device", "list"]) == 0 and ADDRESS in capsys.readouterr().out

    artifact = toy.write_artifact(tmp_path / "art")
    done = said(capsys, 0, "device", "run", "lab", artifact.path, "--profile", "--seconds", "0.02", "--save")
    assert done["verified"] and done["metrics"]["max_abs"] == 0 and done["profile"]["runs"] >= 20
    assert done["profile"]["conditions"]["samples"] >= 1 and artifact.profile is not None

    np.savez(tmp_path / "in.npz", x=np.ones((3, 4), np.float32))
    ran = said(capsys, 0, "device", "run", "lab", artifact.path, "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert ran["runs"] == 3
    assert np.array_equal(np.load(tmp_path / "out.npz")["output"], np.ones((3, 4), np.float32) @ toy.MATRIX)

    assert said(capsys, 0, "device", "release", "lab") == {"device": "lab", "released": False, "owner": None}
    assert main(["device", "run", "lab", str(artifact.path)]) == 0
    page = capsys.readouterr()
    assert "gives the same outputs on lab" in page.out and "executes it there" in page.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nobody", "art"], 2, "no device 'nobody'"),
        (["release", "nobody"], 2, "no device 'nobody'"),
        (["add", "lab", "-oProxyCommand=x"], 2, ""),
        (["add", "lab", "me@-oProxyCommand"], 2, "is not an address"),
        (["add", "a b", "host"], 2, "cannot be the name"),
        (["add", "lab", "adb:-d"], 2, "is not a serial"),
        (["add", "lab", "host", "--target", "no-such-device"], 2, "no-such-device"),
        (["add", "lab", "host", "--python", "-c"], 2, "is not the name of a Python"),
        (["run", "known", "art", "--input", "x.npz"], 2, "--input needs --output"),
        (["run", "known", "art", "--output", "x.npz"], 2, "--output belongs to"),
        (["run", "known", "art", "--input", "x.npz", "--output", "y", "--build"], 2, "call it twice"),
    ],
)
def test_refusals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """None of them contacts anybody: there is no ssh."""
    monkeypatch.setenv("DEPLOYKIT_DEVICES", str(tmp_path / "d.toml"))
    monkeypatch.setenv("PATH", "/nowhere")
    Registry().put("known", Entry("host"))
    error = said(capsys, code, "device", *arguments)["error"]
    assert message in error["message"] + str(error["hint"])
    assert list(Registry().entries()) == ["known"]


def test_a_board_that_cannot_be_reached_is_not_written_down(
    loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loopback.kill()
    error = said(capsys, 10, "device", "add", "lab", ADDRESS)["error"]
    assert "Connection refused" in error["message"] and error["hint"].startswith("try: ssh")
    assert Registry().entries() == {}
    assert said(capsys, 0, "device", "add", "lab", ADDRESS, "--no-probe")["device"]["found"] is None


def test_a_board_without_deploykit_is_written_down_and_says_so(
    loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["device", "add", "bare", ADDRESS, "--python", "/no/python"])
    page = capsys.readouterr()
    assert code == 0 and "runs only artifacts that bring a program of their own" in page.err
    assert "pip install" in page.err and Registry().get("bare").found.deploykit == ""


def test_a_target_of_another_processor(
    toy: Any, loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(capsys, 2, "device", "add", "lab", ADDRESS, "--target", "raspberry-pi-5:tvm")["error"]
    assert "has a processor of arm64" in error["message"]
