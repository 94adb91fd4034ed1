"""A board behind a real OpenSSH server: on this machine, on a high port, with keys of its own.

The user's own configuration, keys and known hosts are not touched: a program called `ssh` adds ours to OpenSSH's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deploykit.contract.errors import DeviceError
from deploykit.judge.profiling import Effort
from deploykit.places import Ssh
from deploykit.testing.loopback import ADDRESS, Loopback

FEEDS = {"x": np.full((1, 4), 0.5, np.float32)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    try:
        found = Loopback(tmp_path_factory.mktemp("sshd") / "board")
    except DeviceError as error:
        pytest.skip(error.message)
    yield found
    found.kill()


@pytest.fixture
def address(server: Loopback, tmp_path: Path, toy_children: None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", str(server.write_client(tmp_path / "bin/ssh").parent), prepend=os.pathsep)
    monkeypatch.setenv("DEPLOYKIT_BOARD_PYTHON", sys.executable)
    return ADDRESS


def test_an_artifact_on_it(toy: Any, address: str, server: Loopback, tmp_path: Path) -> None:
    artifact = toy.write_artifact(tmp_path / "art").on_board(address)
    assert artifact.verify().max_abs == 0
    profile = artifact.plugin().profile(artifact, effort=Effort(seconds=0.02))
    assert profile.runs >= 20 and "measured on 127.0.0.1" in profile.notes[0]
    there = [path.name for path in (server.home / ".cache/deploykit").rglob("*") if path.is_file()]
    assert sorted(there) == ["golden.safetensors", "manifest.json", "matrix.npy"]


def _run_on(session: Any) -> None:
    """Run again and again: the connection behind a line may answer until it sees that the line is gone."""
    for _ in range(100):
        session.run(FEEDS)
        time.sleep(0.1)


def test_a_line_that_is_cut(toy: Any, address: str, server: Loopback, tmp_path: Path) -> None:
    with toy.write_artifact(tmp_path / "art").open(place=Ssh(address)) as session:
        assert session.run(FEEDS)
        line = psutil.Process(session._peer.process.pid)
        line.terminate()
        line.wait(10)
        with pytest.raises(
            DeviceError, match=r"(?s)deploykit on 127\.0\.0\.1 (lost its connection|ended).*-> try: ssh"
        ):
            _run_on(session)


def test_nothing_outlives_the_line(toy: Any, address: str, server: Loopback, tmp_path: Path) -> None:
    before = set(psutil.Process(server.pid).children(recursive=True))
    place = Ssh(address)
    session = toy.write_artifact(tmp_path / "art").open(place=place)
    there = list(set(psutil.Process(server.pid).children(recursive=True)) - before)
    served = [process for process in there if "deploykit.places.serve" in " ".join(process.cmdline())]
    assert served
    session._peer.process.kill()
    session.close()
    assert not psutil.wait_procs(served, timeout=10)[1]
    place.line.close()
    assert not psutil.wait_procs(there, timeout=10)[1]


def test_commands_share_a_connection(toy: Any, address: str, server: Loopback, tmp_path: Path) -> None:
    def accepted() -> int:
        return (server.folder / "log").read_text(encoding="utf-8").count("Accepted publickey")

    before, place = accepted(), Ssh(address)
    assert toy.write_artifact(tmp_path / "art").at(place).verify().max_abs == 0
    assert accepted() == before + 1
    place.line.close()
    place.line.run("true")
    assert accepted() == before + 2
    place.line.close()


def test_the_users_own_shared_connection_is_used(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/ssh"
    own = program.read_text().replace(" -p ", " -o ControlPath=/tmp/users-own-%C -p ", 1)
    program.write_text(own, encoding="utf-8")
    assert not any("ControlPath" in word for word in Ssh(address).line.words())


def test_a_key_that_is_not_let_in(toy: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/ssh"
    program.write_text(program.read_text().replace("/user ", "/host "), encoding="utf-8")
    with pytest.raises(DeviceError, match=r"(?s)lost its connection.*Permission denied.*-> try: ssh -o BatchMode=yes"):
        toy.write_artifact(tmp_path / "art").open(place=Ssh(address))


def test_a_port_that_nobody_listens_on(toy: Any, address: str, tmp_path: Path) -> None:
    program = tmp_path / "bin/ssh"
    program.write_text(program.read_text().replace(" -p ", " -p 1 -o Port="), encoding="utf-8")
    with pytest.raises(DeviceError, match=r"(?s)Connection refused.*-> try: ssh"):
        toy.write_artifact(tmp_path / "art").open(place=Ssh(address))
