"""Leases, as scripts of a shell on this machine: at most one holder, expiry, boots, and what a dead one left."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest

from deploykit.contract.errors import DeviceError
from deploykit.contract.optional import SystemTool
from deploykit.places.line import Line, LostError
from deploykit_fleet.devices.lease import TTL_S, Clock, Lease, release


class Shell(Line):
    """A board that is this machine, in a home of its own; `fail` cuts its line."""

    fail = False

    def __init__(self, home: Path) -> None:
        home.mkdir(exist_ok=True)
        super().__init__("lab", SystemTool("sh", "dash", "start things"), home=str(home))

    @property
    def hint(self) -> str:
        return "look at the cable"

    def words(self) -> list[str]:
        return ["sh", "-c", "exit 255"] if self.fail else ["sh", "-c"]

    def is_lost(self, code: int, said: str) -> bool:
        return code == 255


@pytest.fixture
def line(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


def test_one_at_a_time_and_then_the_next(line: Shell) -> None:
    with Lease(line, "lab"):
        message = r"(?s)lab is in use by .*@.*, whose lease ends in \d+ s.*deploykit device release lab"
        with pytest.raises(DeviceError, match=message):
            Lease(line, "lab", wait_s=0.0).__enter__()
    with Lease(line, "lab", wait_s=0.0):
        pass
    links = list((Path(line.home) / ".cache/deploykit/lease").iterdir())
    assert len([path for path in links if path.is_symlink()]) == 1, "earlier ones are cleaned up"


def test_one_that_waits_gets_it(line: Shell) -> None:
    first = Lease(line, "lab").__enter__()
    subprocess.Popen(["sleep", "0"]).wait()
    started = time.monotonic()
    import threading

    threading.Timer(1.0, lambda: first.__exit__(None, None, None)).start()
    with Lease(line, "lab", wait_s=30.0):
        assert time.monotonic() - started >= 1.0


def test_a_dead_clients_lease_ends_by_itself(line: Shell) -> None:
    dead = Lease(line, "lab", ttl_s=2)
    dead._take(0.0)  # and nobody renews it
    with Lease(line, "lab", wait_s=20.0):
        pass
    assert TTL_S <= 60


def test_a_live_clients_lease_is_renewed(line: Shell) -> None:
    with Lease(line, "lab", ttl_s=2) as held:
        time.sleep(3.0)
        with pytest.raises(DeviceError, match="in use"):
            Lease(line, "lab", wait_s=0.0).__enter__()
        held.check()


def test_of_another_boot_it_is_none(line: Shell, tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    boot.write_text("one")
    with Lease(line, "lab", Clock(str(boot))):
        boot.write_text("two")
        Lease(line, "lab", Clock(str(boot)), wait_s=0.0)._take(0.0)


@pytest.mark.parametrize("name", ["7", "0009", "99999999999999999999"])
@pytest.mark.parametrize("target", ["x:99999999999:{boot}:own", ":::", "x:$(touch pwned):{boot}:`touch pwned`", "e"])
def test_what_no_client_of_ours_wrote_keeps_nobody_out(line: Shell, name: str, target: str) -> None:
    folder = Path(line.home) / ".cache/deploykit/lease"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(target.format(boot=Path(Clock().boot_id).read_text().strip()))
    with Lease(line, "lab", wait_s=0.0) as lease:
        lease.renew()
    assert not list(Path(line.home).rglob("pwned"))


def test_a_shell_that_talks_before_a_command_is_told(line: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "words", lambda: ["sh", "-c", 'echo Welcome; eval "$0"'])
    with pytest.raises(DeviceError, match=r"answers a lease with 'Welcome taken 1'(?s:.*)bashrc"):
        Lease(line, "lab", wait_s=0.0).__enter__()


def test_released_by_somebody_it_says_so_and_is_not_taken_back(line: Shell) -> None:
    with Lease(line, "lab") as held:
        assert "@" in release(line)
        with pytest.raises(DeviceError, match="somebody released it"):
            held.renew()
    assert release(line) == ""


def test_after_a_cut_that_outlasted_it_it_is_taken_again_where_nobody_has_it(line: Shell) -> None:
    with Lease(line, "lab", ttl_s=2) as held:
        held._over.set()  # the thread that renews it stops
        line.fail = True
        with pytest.raises(LostError):
            held.renew()
        line.fail = False
        time.sleep(3.0)
        held._over.clear()
        held.renew()
        with pytest.raises(DeviceError, match="in use"):
            Lease(line, "lab", wait_s=0.0).__enter__()


def test_what_a_dead_client_left_running_is_ended(line: Shell) -> None:
    dead = Lease(line, "lab", ttl_s=1)
    dead._take(0.0)
    job = Path(line.home) / f".cache/deploykit/jobs/{dead.token}.1.1"
    job.mkdir(parents=True)
    name = f".cache/deploykit/jobs/{job.name}"
    left = subprocess.Popen(["setsid", "sh", "-c", 'echo $$ > "$0/pid"; sleep 60; :', name], cwd=line.home)
    bystander = subprocess.Popen(["sleep", "60"])
    time.sleep(2.0)
    with Lease(line, "lab", wait_s=10.0):
        assert left.wait(10) != 0
        assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def _contend(home: Path, mark: Path, results: Path, rounds: int) -> None:
    """Take and give back, and note whether anybody else was inside."""
    line = Shell(home)
    for number in range(rounds):
        lease = Lease(line, "lab", wait_s=120.0, ttl_s=20)
        lease._take(120.0)
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            (results / f"{os.getpid()}-{number}").write_text("alone")
            time.sleep(0.002)
            mark.unlink()
        except FileExistsError:
            (results / f"{os.getpid()}-{number}").write_text("shared")
        if number % 3 == 2:
            release(line)
        else:
            lease.__exit__(None, None, None)


def test_clients_that_race_never_share_it(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_contend, args=(tmp_path / "home", tmp_path / "mark", results, 4)) for _ in "1234"]
    (tmp_path / "home").mkdir()
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(100)
    assert [path.read_text() for path in results.iterdir()] == ["alone"] * 16
