"""A device behind a real sshd: the same results; lines that are cut, servers that are killed, boards that restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.artifact.manifest import NEEDS_DEVICE_BUILD, PendingBuild
from deploykit.contract.errors import ArtifactError, DeviceError, ParityError, UsageError
from deploykit.judge.profiling import Effort
from deploykit.testing.loopback import Cutter, Loopback
from deploykit_fleet.devices import Device

FEEDS = {"x": np.full((1, 4), 0.5, np.float32)}
Make = Callable[..., Device]


def files(loopback: Loopback) -> set[str]:
    root = loopback.home / ".cache/deploykit"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_verify_and_run_and_a_second_time_nothing_is_sent(
    toy: Any, make: Make, loopback: Loopback, tmp_path: Path
) -> None:
    artifact, lab = toy.write_artifact(tmp_path / "art"), make()
    assert lab.verify(artifact).max_abs == 0
    assert np.array_equal(lab.run(artifact, FEEDS)["output"], FEEDS["x"] @ toy.MATRIX)
    sent, there = lab.board.transfer.sent_bytes, files(loopback)
    assert sent > 0 and not any("jobs" in name or "parts" in name for name in there)
    with lab.leased():
        assert lab.verify(str(artifact.path)).max_abs == 0
        several = lab.run(artifact, [FEEDS, {"x": 2 * FEEDS["x"]}, FEEDS][:1])
    assert len(several) == 1 and lab.board.transfer.sent_bytes == sent
    assert {name for name in files(loopback) if not name.startswith("lease")} == {
        name for name in there if not name.startswith("lease")
    }


def test_what_is_wrong_is_found_before_anything_is_sent(toy: Any, make: Make, tmp_path: Path) -> None:
    artifact, lab = toy.write_artifact(tmp_path / "art"), make()
    with pytest.raises(UsageError, match="wrong input names"):
        lab.run(artifact, {"y": FEEDS["x"]})
    with pytest.raises(UsageError, match="not a number of seconds"):
        lab.profile(artifact, sustained=-1.0)
    with pytest.raises(UsageError, match="needs no build"):
        lab.build(artifact)
    assert lab.board.transfer.sent_bytes == 0


def test_native_code_from_elsewhere_is_refused_here_and_allowed_code_runs_there(
    toy: Any, make: Make, loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that the user sits at decides; nothing is sent before."""
    from deploykit.artifact import made
    from deploykit.artifact.manifest import PendingBuild
    from deploykit.plugin.artifact import load

    monkeypatch.setenv("DEPLOYKIT_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(made, "_known", set())
    monkeypatch.setattr(toy.ToyTarget, "native_code", lambda self, artifact: "machine code")
    monkeypatch.setattr(toy.ToyTarget, "build_code", lambda self, artifact: "a build program")
    toy.write_artifact(tmp_path / "art")
    waiting = {"status": "needs device build", "build": PendingBuild("deploykit build .", "build it there")}
    toy.write_artifact(tmp_path / "unbuilt", **waiting)
    board = make()
    for act in (board.verify, board.profile):
        with pytest.raises(ArtifactError, match="opening art runs machine code, and it was not made here"):
            act(tmp_path / "art")
    with pytest.raises(ArtifactError, match="building unbuilt runs a build program, and it was not made here"):
        board.build(tmp_path / "unbuilt")
    assert board.verify(load(tmp_path / "art", allow_native=True)).max_abs == 0.0


def test_other_outputs_there_are_an_error(
    toy: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = toy.write_artifact(tmp_path / "art")
    real = toy.write_artifact(tmp_path / "other")
    golden = (artifact.path / "golden.safetensors").read_bytes()
    assert golden
    monkeypatch.setattr(toy, "MATRIX", -toy.MATRIX)
    changed = toy.write_artifact(tmp_path / "changed")
    np.save(changed.path / "matrix.npy", np.load(real.path / "matrix.npy"))
    from dataclasses import replace

    from deploykit.pipeline.staging import list_files

    listed = tuple(entry for entry in list_files(changed.path) if entry.path in ("matrix.npy", "golden.safetensors"))
    (changed.path / "manifest.json").write_bytes(replace(changed.manifest, files=listed).to_json())
    with pytest.raises(ParityError, match="gives other outputs on lab than where it was made"):
        make().verify(changed.path)


def test_profile_with_conditions_and_the_last_minute(toy: Any, make: Make, tmp_path: Path) -> None:
    zone, cpu = tmp_path / "sys/class/thermal/thermal_zone0", tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    for folder in (zone, cpu):
        folder.mkdir(parents=True)
    (zone / "type").write_text("cpu thermal\n")
    (zone / "temp").write_text("51500\n")
    (cpu / "scaling_cur_freq").write_text("1800000\n")
    (cpu / "cpuinfo_max_freq").write_text("2400000\n")
    artifact = toy.write_artifact(tmp_path / "art")
    found = make().profile(artifact, effort=Effort(seconds=0.05), sustained=1.2)
    assert found.runs >= 20 and "measured on lab" in found.notes[0]
    assert found.conditions is not None and found.conditions.absent == ("throttling",)
    assert [(one.name, one.maximum) for one in found.conditions.temperature_c] == [("0-cpu_thermal", 51.5)]
    assert found.conditions.clock_mhz[0].last == 1800 and found.conditions.most_mhz == {"cpu0": 2400}
    assert found.sustained is not None and found.sustained.seconds >= 1.2 and found.sustained.window_s == 0.12
    assert found.sustained.slowdown > 0 and found.sustained.runs > 100
    artifact.save_profile(found)
    assert artifact.profile == found


def test_build_there_and_have_it_here(toy: Any, make: Make, loopback: Loopback, tmp_path: Path) -> None:
    pending = PendingBuild("deploykit build .", "only the board can build it")
    artifact = toy.write_artifact(tmp_path / "art", build=pending, status=NEEDS_DEVICE_BUILD)
    lab = make()
    with pytest.raises(DeviceError, match=r"(?s)not runnable yet.*--build"):
        lab.verify(artifact)
    built = lab.build(artifact, output=tmp_path / "built", profile=False)
    assert built.manifest.parent == artifact.fingerprint and built.entry.name == "built.npy"
    assert built.verify().max_abs == 0 and lab.verify(built).max_abs == 0
    assert not any("built/" in name for name in files(loopback))


def test_a_build_that_misses_its_gate_is_kept_and_raised(toy: Any, make: Make, tmp_path: Path) -> None:
    pending = PendingBuild("deploykit build .", "only the board can build it")
    artifact = toy.write_artifact(tmp_path / "art", build=pending, status=NEEDS_DEVICE_BUILD)
    with pytest.raises(ParityError, match="computes something else") as missed:
        make().build(artifact, output=tmp_path / "built", options={"gain": 3.0}, profile=False)
    assert missed.value.candidate.status == "failed" and missed.value.candidate.path.name == "built.failed"


SLOW = """
import time, pathlib, toy_toolchain
run = toy_toolchain.MatrixSession._run
def slowly(self, feeds):
    with open({log!r}, "a") as log: log.write("run\\n")
    time.sleep({seconds})
    return run(self, feeds)
toy_toolchain.MatrixSession._run = slowly
"""


@pytest.fixture
def slow(children: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The board's runtime takes seconds, and writes down each run."""
    import os

    folder, log = tmp_path / "slow", tmp_path / "runs"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW.format(log=str(log), seconds=1.2))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return log


def begun(log: Path) -> None:
    for _ in range(400):
        if log.exists():
            return
        time.sleep(0.05)
    pytest.fail("the job has not begun")


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def keep() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    return thread, found


def test_a_job_outlives_its_connection_and_a_killed_server(
    toy: Any, slow: Path, make: Make, loopback: Loopback, tmp_path: Path
) -> None:
    artifact, lab = toy.write_artifact(tmp_path / "art"), make()
    thread, found = in_background(lambda: lab.verify(artifact))
    begun(slow)
    loopback.kill()
    time.sleep(1.0)
    loopback.start()
    thread.join(60)
    assert found[0].max_abs == 0
    assert slow.read_text().count("run") == 2, "two golden samples, each run once"


def test_a_board_that_started_anew_is_asked_again_once(
    toy: Any, slow: Path, make: Make, loopback: Loopback, tmp_path: Path
) -> None:
    artifact, lab = toy.write_artifact(tmp_path / "art"), make()
    thread, found = in_background(lambda: lab.verify(artifact))
    begun(slow)
    (tmp_path / "boot_id").write_text("second-boot\n")
    thread.join(60)
    assert not isinstance(found[0], Exception), found[0]
    assert found[0].max_abs == 0
    assert slow.read_text().count("run") in (3, 4), "the first start was not let finish"


def test_a_board_that_starts_anew_again_and_again_is_given_up(
    toy: Any, slow: Path, make: Make, loopback: Loopback, tmp_path: Path
) -> None:
    artifact, lab = toy.write_artifact(tmp_path / "art"), make()
    thread, found = in_background(lambda: lab.verify(artifact))
    for number in range(40):
        if not thread.is_alive():
            break
        if slow.exists() or number:
            (tmp_path / "boot_id").write_text(f"boot-{number}\n")
        time.sleep(1.0)
    thread.join(60)
    assert isinstance(found[0], DeviceError) and "started anew, twice" in str(found[0])


def test_a_job_that_crashes_says_how(
    toy: Any, children: None, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    folder = tmp_path / "crash"
    folder.mkdir()
    code = "import os, toy_toolchain\ntoy_toolchain.MatrixSession._run = lambda self, feeds: os.kill(os.getpid(), 9)\n"
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    with pytest.raises(DeviceError, match=r"(?s)art on 127\.0\.0\.1 was killed by SIGKILL: by the system for lack of"):
        make().verify(toy.write_artifact(tmp_path / "art"))


@pytest.mark.parametrize("said", ["done  12 " + "a" * 64, "done 0 12", "done 0 x y", "done"])
def test_a_board_that_lost_what_came_of_a_job_is_told(said: str) -> None:
    from types import SimpleNamespace

    from deploykit_fleet.devices.jobs import Jobs

    board: Any = SimpleNamespace(line="lab", transfer=None)
    lease: Any = None
    with pytest.raises(DeviceError, match=r"lab lost what came of net.*\n.*is its disk full"):
        Jobs(board, lease)._collect("job", said.split(), "net", 1, False)


def test_cut_at_random_bytes_of_a_transfer(toy: Any, make: Make, cutter: Cutter, tmp_path: Path) -> None:
    """Each cut costs at most a MiB; what arrives is right."""
    random = np.random.default_rng(17)
    artifact = toy.write_artifact(tmp_path / "art")
    data = random.bytes(4 << 20)
    lab, line = make(), make().board
    from hashlib import sha256

    digest, cuts = sha256(data).hexdigest(), 0
    done: list[bool] = []
    thread, _ = in_background(lambda: (line.transfer.send(data, "out/large", digest), done.append(True)))
    while thread.is_alive():
        if not cutter.waits and cuts < 3:
            cutter.cut_after(int(random.integers(1 << 18, 3 << 19)))
            cuts += 1
        time.sleep(0.02)
    assert done and cutter.cuts >= 2
    assert line.transfer.sent_bytes - len(data) <= cutter.cuts << 20
    assert line.transfer.missing("out", {"large": digest}) == []
    assert lab.verify(artifact).max_abs == 0
    line.line.close()


def test_by_its_name(toy: Any, loopback: Loopback, tmp_path: Path) -> None:
    from deploykit_fleet.devices import Entry, Registry

    Registry().put("lab", Entry("127.0.0.1"))
    lab = deploykit.device("lab")
    assert lab.verify(toy.write_artifact(tmp_path / "art")).max_abs == 0
    lab.close()
    with pytest.raises(UsageError, match=r"no device 'lap'.*there are lab"):
        deploykit.device("lap")
