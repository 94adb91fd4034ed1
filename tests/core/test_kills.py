"""Exports, tables, profiles and builds: killed at random moments, from two PID namespaces in one folder; a full disk.

`DEPLOYKIT_KILLS=300 pytest -m nightly tests/core/test_kills.py` kills more often.
"""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit.artifact.manifest import PendingBuild
from deploykit.plugin.artifact import load
from deploykit_calibration.table import CalibrationTable

pytest.importorskip("torch", reason="the pipeline needs PyTorch")
pytest.importorskip("onnxruntime", reason="these exports run in ONNX Runtime")
COUNTS = [6, pytest.param(int(os.environ.get("DEPLOYKIT_KILLS", "30")), marks=pytest.mark.nightly)]
ZYGOTE = Path(__file__).with_name("zygote.py")
NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
MARK = "DEPLOYKIT_KILLS_OF"
OURS = {"model", "model.calibration", "toy", "pending", "built"}
ENDINGS = {"SIGKILL": (-9,), "SIGTERM": (-15,), "SIGINT": (130,)}


@contextlib.contextmanager
def zygote(shared: Path, paths: list[Path], wrapper: list[str]) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join([*map(str, paths), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, MARK: str(shared)}
    command = [*wrapper, sys.executable, str(ZYGOTE), str(shared)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        assert process.stdout.readline() == "ready\n"
        yield process


def snapshot(folder: Path) -> dict[str, object]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in [folder, *folder.rglob("*")]}


def with_mark(shared: Path) -> set[int]:
    """Processes that were started below a zygote of this folder."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={shared}".encode() in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def check_whole(shared: Path) -> None:
    for name in ("model", "toy", "built"):
        found = load(shared / name)
        assert found.golden() and (name != "toy" or found.profile)
    CalibrationTable.load(shared / "model.calibration")


@pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces and /proc are of Linux")
@pytest.mark.parametrize("count", COUNTS)
def test_killed_at_any_moment_nothing_is_half_lost_or_left(toy, toy_path, tmp_path, count):
    shared = tmp_path / "shared"
    foreign = shared / ".model.staging-notes"
    foreign.mkdir(parents=True)
    (foreign / "mine").write_text("mine")
    (shared / "photos").mkdir()
    (shared / "photos" / "model").write_text("mine")
    toy.write_artifact(shared / "toy", profile=toy.make_profile())
    toy.write_artifact(shared / "pending", build=PendingBuild("deploykit build .", "why"), status="needs device build")
    there = {str(foreign): snapshot(foreign), str(shared / "photos"): snapshot(shared / "photos")}
    other = NAMESPACE if not subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode else []
    with zygote(shared, toy_path, []) as one, zygote(shared, toy_path, other) as two:
        living, said = with_mark(shared), []
        for seed in range(0, count, 2):
            for process, number in ((one, seed), (two, seed + 1)):
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
            said += [ast.literal_eval(process.stdout.readline()) for process in (one, two)]
            check_whole(shared)
        deadline = time.monotonic() + 30.0
        while (orphans := with_mark(shared) - living) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not orphans
    assert not [each for each in said if each["code"] not in ENDINGS[each["signal"]]]
    with zygote(shared, toy_path, []):  # the next of each
        pass
    check_whole(shared)
    assert {path.name for path in shared.iterdir()} == OURS | {foreign.name, "photos"}
    assert {path.name for path in (shared / "toy").iterdir() if path.name.startswith(".")} == set()
    assert {name: snapshot(Path(name)) for name in there} == there


# -- a full disk --------------------------------------------------------------------------------------------------
# No file may grow past a limit (`RLIMIT_FSIZE`): what refuses a write fails as it does where the disk is full.

LIMITS = (0, 1, 100, 400, 1000, 2000, 4000, 1 << 30)
SWEEP = """
import contextlib, os, pathlib, resource, sys
import zygote
from deploykit.contract.errors import DeploykitError
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
shared, hard = pathlib.Path(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for task in zygote.TASKS.values():
    task(shared, 0)
for limit in map(int, sys.argv[2:]):
    for name, task in zygote.TASKS.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        said = "done"
        try:
            task(shared, limit)
        except DeploykitError as error:
            said = f"refused: {error.message}"
        except BaseException as error:
            said = f"raw {error!r}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print((name, limit, said, sorted(path.name for path in shared.iterdir())), file=answers, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a limit ends the process")
def test_a_disk_that_is_full_is_said_and_leaves_what_was_there(toy, toy_path, tmp_path):
    shared = tmp_path / "shared"
    toy.write_artifact(shared / "toy", profile=toy.make_profile())
    toy.write_artifact(shared / "pending", build=PendingBuild("deploykit build .", "why"), status="needs device build")
    paths = [*toy_path, Path(__file__).parent, *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", SWEEP, str(shared), *map(str, LIMITS)]
    done = subprocess.run(command, env=environment, stdout=-1, text=True, check=True)
    found = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert len(found) == 4 * len(LIMITS)
    for name, limit, said, names in found:
        assert said == "done" if limit == LIMITS[-1] else said.startswith("refused: ") or limit > 1, (name, limit, said)
        assert not said.startswith("raw") and set(names) == OURS, (name, limit, said, names)
    check_whole(shared)
