"""A device that is this machine behind a real OpenSSH server, with the toy toolchain of `tests/core`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploykit.contract.errors import DeviceError
from deploykit.testing.loopback import ADDRESS, Cutter, Loopback
from deploykit_fleet.devices import Device, Entry
from deploykit_fleet.devices.lease import Clock
from deploykit_fleet.devices.sensors import Sources

_CORE = Path(__file__).parents[2] / "core" / "conftest.py"
_spec = importlib.util.spec_from_file_location("core_conftest", _CORE)
assert _spec is not None and _spec.loader is not None
_core = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_core)
install, toy_path, toy = _core.install, _core.toy_path, _core.toy


@pytest.fixture
def children(toy_path: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is started on the board finds the toy toolchain, and what this process finds."""
    own = [*map(str, toy_path), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(own))
    monkeypatch.setenv("DEPLOYKIT_BOARD_PYTHON", sys.executable)
    monkeypatch.setenv("DEPLOYKIT_DEVICES", str(tmp_path / "devices.toml"))


@pytest.fixture
def loopback(children: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    try:
        found = Loopback(tmp_path / "sshd")
    except DeviceError as error:
        pytest.skip(error.message)
    monkeypatch.setenv("PATH", str(found.write_client(tmp_path / "bin/ssh").parent), prepend=os.pathsep)
    yield found
    found.kill()


@pytest.fixture
def cutter(loopback: Loopback, tmp_path: Path) -> Iterator[Cutter]:
    """Between `ssh` and the server."""
    found = Cutter(loopback.port)
    loopback.write_client(tmp_path / "bin/ssh", port=found.port)
    yield found
    found.close()


@pytest.fixture
def make(loopback: Loopback, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """A device at that board, whose boot and sensors are files of this test."""
    made: list[Device] = []
    (tmp_path / "boot_id").write_text("first-boot\n")

    def make_one(**changes: Any) -> Device:
        sources = Sources(str(tmp_path / "sys"))
        own = Device("lab", Entry(ADDRESS), clock=Clock(str(tmp_path / "boot_id")), sources=sources, **changes)
        made.append(own)
        return own

    yield make_one
    for own in made:
        own.close()
