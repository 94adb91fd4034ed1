"""Android over adb, against a recording stand-in for `adb`: no device was at hand, and none is claimed.

What it shows is our side: what is asked of `adb`, in which order, and what becomes of its failures. Behind it runs
this machine's shell, with the Python of these tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import DeviceError, MissingDependencyError, UsageError
from deploykit.places import Adb
from deploykit_fleet.devices import Device, Entry
from deploykit_fleet.devices.probe import probe

ADB = """#!/bin/sh
echo "$*" >> "$STAND_IN/log"
[ ! -f "$STAND_IN/gone" ] || {{ echo "adb: device 'A1:5555' not found" >&2; exit 1; }}
[ "$1 $2 $3 $4" = "-s A1:5555 shell -T" ] || {{ echo "adb: unknown command" >&2; exit 1; }}
shift 4
exec sh -c "$(printf '%s' "$*" | sed "s#cd /data/local/tmp#cd $STAND_IN/tmp#")"
"""


@pytest.fixture
def phone(children: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("bin", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin/adb").write_text(ADB.format())
    (tmp_path / "bin/adb").chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path


def test_the_same_steps_as_over_ssh(toy: Any, phone: Path) -> None:
    device = Device("pixel", Entry("adb:A1:5555", python=sys.executable))
    artifact = toy.write_artifact(phone / "art")
    assert device.verify(artifact).max_abs == 0
    sent = device.board.transfer.sent_bytes
    feeds = {"x": np.ones((1, 4), np.float32)}
    with artifact.on_board("adb:A1:5555").open() as session:
        assert np.array_equal(session.run(feeds)["output"], feeds["x"] @ toy.MATRIX)
    assert device.verify(artifact).max_abs == 0 and device.board.transfer.sent_bytes == sent
    asked = (phone / "log").read_text().splitlines()
    assert all(line.startswith("-s A1:5555 shell -T sh -c ") for line in asked if line.startswith("-s"))
    assert sorted(path.name for path in (phone / "tmp/.cache/deploykit").iterdir() if len(path.name) < 30) == [
        "jobs",
        "lease",
        "parts",
        "requests",
    ]


def test_what_it_says_of_itself(phone: Path) -> None:
    found, why = probe(Adb("A1:5555", python=sys.executable))
    assert found.cores >= 1 and found.deploykit and why == ""


def test_a_device_that_goes_away(toy: Any, phone: Path) -> None:
    device = Device("pixel", Entry("adb:A1:5555", python=sys.executable))
    (phone / "gone").touch()
    with pytest.raises(DeviceError, match=r"(?s)A1:5555 cannot be reached.*not found.*try: adb -s A1:5555 shell true"):
        device.verify(toy.write_artifact(phone / "art"))


def test_without_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="sudo apt-get install adb"):
        Adb("A1").host()


@pytest.mark.parametrize("serial", ["-d", "a b", "a\n", "$(x)", "a;b", "a'b"])
def test_what_is_no_serial(serial: str) -> None:
    with pytest.raises(UsageError, match="is not a serial"):
        Adb(serial)
