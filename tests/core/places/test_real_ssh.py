"""A board behind a real OpenSSH server: on this machine, on a high port, with keys of its own.

The user's own configuration, keys and known hosts are not touched: a program called `ssh` adds ours to OpenSSH's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
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

FEEDS = {"x": np.full((1, 4), 0.5, np.float32)}
SERVER = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
SetEnv HOME={folder}/home
AcceptEnv PYTHONPATH
"""
CLIENT = """#!/bin/sh
exec {ssh} -F none -p {port} -i {folder}/user -o IdentitiesOnly=yes -o UserKnownHostsFile={folder}/known \\
  -o StrictHostKeyChecking=accept-new -o SendEnv=PYTHONPATH "$@"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, int]]:
    """Folder with keys, and port and process of a server that lets in who has them."""
    sshd, keygen = (
        shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"),
        shutil.which("ssh-keygen"),
    )
    if sshd is None or keygen is None or shutil.which("ssh") is None:
        pytest.skip("needs the Debian packages openssh-server and openssh-client")
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "home").mkdir()
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(SERVER.format(port=port, folder=folder), encoding="utf-8")
    if os.geteuid() == 0:  # it then wants the folder that its service script makes
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        for _ in range(100):
            if started.poll() is not None or b"Server listening" in (folder / "log").read_bytes():
                break
            time.sleep(0.05)
        if started.poll() is not None:
            pytest.skip(f"this machine's sshd does not start: {(folder / 'log').read_text()[-300:]}")
        yield folder, port, started.pid
    finally:
        started.kill()
        started.wait()


@pytest.fixture
def address(server: tuple[Path, int, int], tmp_path: Path, toy_children: None, monkeypatch: pytest.MonkeyPatch) -> str:
    folder, port, _ = server
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    program.write_text(CLIENT.format(folder=folder, port=port, ssh=shutil.which("ssh")), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("DEPLOYKIT_BOARD_PYTHON", sys.executable)
    return "127.0.0.1"


def test_an_artifact_on_it(toy: Any, address: str, server: tuple[Path, int, int], tmp_path: Path) -> None:
    artifact = toy.write_artifact(tmp_path / "art").on_board(address)
    assert artifact.verify().max_abs == 0
    profile = artifact.plugin().profile(artifact, effort=Effort(seconds=0.02))
    assert profile.runs >= 20 and "measured on 127.0.0.1" in profile.notes[0]
    there = [path.name for path in (server[0] / "home/.cache/deploykit").rglob("*") if path.is_file()]
    assert sorted(there) == ["golden.safetensors", "manifest.json", "matrix.npy"]


def test_a_line_that_is_cut(toy: Any, address: str, server: tuple[Path, int, int], tmp_path: Path) -> None:
    with toy.write_artifact(tmp_path / "art").open(place=Ssh(address)) as session:
        assert session.run(FEEDS)
        psutil.Process(session._peer.process.pid).terminate()
        with pytest.raises(
            DeviceError, match=r"(?s)deploykit on 127\.0\.0\.1 (lost its connection|ended).*-> try: ssh"
        ):
            session.run(FEEDS)


def test_nothing_outlives_the_line(toy: Any, address: str, server: tuple[Path, int, int], tmp_path: Path) -> None:
    session = toy.write_artifact(tmp_path / "art").open(place=Ssh(address))
    there = psutil.Process(server[2]).children(recursive=True)
    assert any("deploykit.places.serve" in " ".join(process.cmdline()) for process in there)
    session._peer.process.kill()
    session.close()
    _, alive = psutil.wait_procs(there, timeout=10)
    assert not alive


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
