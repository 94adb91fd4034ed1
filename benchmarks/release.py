"""What does a release cost beside a bare process pool, and what do SIGKILLs do to it?

    cd benchmarks && python release.py cost [--engine pool] [--engine ray]
    cd benchmarks && python release.py kills [--count 30] [--engine pool] [--engine ray]

`cost`: 12 cells, 3 small models on 4 targets in two precisions, by processor time of everything that was started; the
bare pool exports each cell by itself with `concurrent.futures` and two spawned processes. `kills`: one random process
(driver, worker with its converter, Ray's) is killed at a random moment, then the release is started again, until it is
whole; what is looked at is in `_Kills`. Linux alone: orphans are waited for (`PR_SET_CHILD_SUBREAPER`).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from harness import report

NETS = """
import torch
from torch import nn

def _made(seed, width):
    torch.manual_seed(seed)
    layers = []
    for inside, outside in ((3, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10)]
    return nn.Sequential(*layers).eval(), (torch.zeros(1, 3, 32, 32),)

def one(): return _made(0, 8)
def two(): return _made(1, 12)
def three(): return _made(2, 16)
"""
BARE = """
import os, sys
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def one(cell):
    import deploykit
    model, target, precision = cell
    out = f"bare/{model}-{target}-{precision}".replace(":", "-")
    found = deploykit.export(f"nets:{model}", target, precision, calibration="cal.npz", profile=False, output=out,
                             progress=False)
    return found.fingerprint

if __name__ == "__main__":
    cells = [tuple(word.split(",")) for word in sys.argv[1:]]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        print(*pool.map(one, cells))
"""
RAY = """
import os, sys, tempfile, logging
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, _temp_dir=sys.argv[1],
         logging_level=logging.ERROR, log_to_driver=False)
ray.get([ray.remote(lambda: os.getpid()).remote() for _ in range(2)])
ray.shutdown()
"""
BLOCKS = ((("x86-cpu", "x86-cpu:openvino"), "int8"), (("jetson-orin", "amd-mi300x"), "fp32"))
"""Targets and their precision: 4 targets, 2 precisions, 12 cells of 3 models."""
KINDS = {
    "driver": lambda words: "deploykit release" in words,
    "worker": lambda words: "deploykit_fleet.engine.worker" in words,
    "host": lambda words: "deploykit_fleet.engine.ray_host" in words,
    "raylet": lambda words: "/raylet/raylet" in words.split(" ")[0],
    "task": lambda words: words.startswith("ray::attempt"),
}
OF_ENGINE = {"pool": ("driver", "worker"), "ray": ("driver", "worker", "host", "raylet", "task")}


def project(folder: Path, models: tuple[str, ...], blocks=BLOCKS) -> Path:
    """Networks, data and a release file in a folder."""
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    images = np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)
    np.savez(folder / "cal.npz", input=images)
    text = "[release]\nprofile = false\n"
    text += "".join(f'[model.{name}]\nfactory = "nets:{name}"\ncalibration = "cal.npz"\n' for name in models)
    for targets, precision in blocks:
        text += f'[[cell]]\nmodels = {[*models]}\ntargets = {[*targets]}\nprecisions = ["{precision}"]\n'
    (folder / "release.toml").write_text(text)
    return folder


def adopt_orphans() -> None:
    """Become the parent of every process whose own parent ends, so that its processor time is counted."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def spent(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Processor seconds of a command with everything that it started, wall seconds, and what it printed."""
    reap()
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    wall = time.perf_counter() - began
    reap()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stdout}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, done.stdout


def reap() -> None:
    """Wait for orphans, which are ended where they live on."""
    end = time.monotonic() + 15.0
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            return
    for child in psutil.Process().children(recursive=True):
        child.kill()


def cost(engines: list[str]) -> dict[str, dict[str, object]]:
    """Processor time of the same 12 cells, each way once, and of one start of Ray."""
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = project(Path(name) / "p", ("one", "two", "three"))
        (folder / "bare.py").write_text(BARE)
        (folder / "start_ray.py").write_text(RAY)
        cells = [f"{m},{t},{p}" for targets, p in BLOCKS for m in ("one", "two", "three") for t in targets]
        bare, wall, printed = spent([sys.executable, "bare.py", *cells], folder)
        found["bare pool"] = {"cpu_s": bare, "wall_s": wall}
        start = 0.0
        for engine in engines:
            if engine == "ray":
                start, wall, _ = spent([sys.executable, "start_ray.py", tempfile.mkdtemp(prefix="dk-ray-")], folder)
                found["one Ray start"] = {"cpu_s": start, "wall_s": wall}
            shutil.rmtree(folder / "out", ignore_errors=True)
            words = ["release", "release.toml", "--engine", engine, "--jobs", "2", "--json"]
            cpu, wall, document = spent([sys.executable, "-m", "deploykit", *words], folder)
            own = sorted(cell["fingerprint"] for cell in json.loads(document)["cells"])
            budget = bare + (start if engine == "ray" else 0.0)
            same = own == sorted(printed.split())
            found[engine] = {"cpu_s": cpu, "wall_s": wall, "of_budget": cpu / budget, "same_fingerprints": same}
            cpu, wall, _ = spent([sys.executable, "-m", "deploykit", *words], folder)
            found[f"{engine}, nothing to do"] = {"cpu_s": cpu, "wall_s": wall}
    return found


@dataclass
class _Kills:
    """What is counted over all kills; `half` to `failed` must stay 0."""

    kills: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    half: int = 0
    recomputed: int = 0
    differing: int = 0
    left_after_10_s: int = 0
    failed: int = 0
    ray_did_not_start: int = 0
    slowest_end_s: float = 0.0


def kills(engines: list[str], count: int) -> dict[str, dict[str, object]]:
    """Kill until so many kills of each engine are done."""
    found = {}
    for engine in engines:
        chance, told = random.Random(f"{engine} {count}"), _Kills()
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            blocks = ((("x86-cpu",), "int8"), (("x86-cpu", "jetson-orin"), "fp32"))
            expected = _sequential(project(Path(name) / "sequential", ("one", "two"), blocks))
            number = 0
            while sum(told.kills.values()) < count:
                number += 1
                folder = project(Path(name) / f"p{number}", ("one", "two"), blocks)
                _until_whole(folder, engine, chance, told, expected, count)
                print(engine, told, file=sys.stderr, flush=True)
        found[engine] = {**vars(told), "kills": ", ".join(f"{n} {kind}" for kind, n in sorted(told.kills.items()))}
    return found


def _sequential(folder: Path) -> dict[str, str]:
    words = ["release", "release.toml", "--engine", "sequential", "--json"]
    document = json.loads(spent([sys.executable, "-m", "deploykit", *words], folder)[2])
    return {f"{c['model']}/{c['target']}/{c['precision']}": c["fingerprint"] for c in document["cells"]}


def _until_whole(
    folder: Path, engine: str, chance: random.Random, told: _Kills, expected: dict[str, str], count: int
) -> None:
    """Runs of one release, one kill in each, until it is whole."""
    words = ["release", "release.toml", "--engine", engine, "--jobs", "2", "--json"]
    before: dict[str, int] = {}
    for _ in range(40):
        kill = chance.choice(OF_ENGINE[engine]) if sum(told.kills.values()) < count else ""
        process = subprocess.Popen(
            [sys.executable, "-m", "deploykit", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        told.runs += 1
        if kill and _killed(process, kill, chance.uniform(0.0, 8.0), chance):
            told.kills[kill] = told.kills.get(kill, 0) + 1
        printed = process.communicate()[0]
        _look(folder, told, before)
        before = _finished(folder)
        document = json.loads(printed or b"{}")
        told.ray_did_not_start += "error" in document  # it gives up after 30 s on a machine that is busy
        if "cells" in document:
            break
    cells = document["cells"]
    names = {f"{c['model']}/{c['target']}/{c['precision']}": c["fingerprint"] for c in cells}
    told.failed += sum(cell["status"] != "passed" for cell in cells)
    told.differing += names != expected


def _killed(process: subprocess.Popen[bytes], kind: str, after_s: float, chance: random.Random) -> bool:
    """Kill one process of a kind, so long after the first of it is there; False where none came in time."""
    first = None
    while process.poll() is None:
        below = [p for p in psutil.Process().children(recursive=True) if KINDS[kind](_words(p))]
        first = first or (time.monotonic() if below else None)
        if below and first and time.monotonic() - first >= after_s:
            try:
                chance.choice(below).send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
            return True
        time.sleep(0.05)
    return False


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _finished(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out/store/cells").glob("*.json")}


def _look(folder: Path, told: _Kills, before: dict[str, int]) -> None:
    """After a run: processes, halves, and what was finished before."""
    import deploykit

    began, own = time.monotonic(), psutil.Process()
    while time.monotonic() - began < 10.0:
        alive = [p for p in own.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            break
        time.sleep(0.1)
    told.slowest_end_s = max(told.slowest_end_s, round(time.monotonic() - began, 2))
    told.left_after_10_s += len(alive)
    reap()
    for path in (folder / "out/store/objects").glob("*"):
        try:
            told.half += deploykit.load(path).fingerprint != path.name
        except deploykit.DeploykitError:
            told.half += 1
    now = _finished(folder)
    told.recomputed += sum(now.get(name) != stamp for name, stamp in before.items())


def main() -> None:
    """Run a part, print it, and write it to `results/`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["cost", "kills"])
    parser.add_argument("--engine", action="append", choices=["pool", "ray"])
    parser.add_argument("--count", type=int, default=30, help="kills of each engine")
    arguments = parser.parse_args()
    adopt_orphans()
    engines = arguments.engine or ["pool", "ray"]
    found = cost(engines) if arguments.part == "cost" else kills(engines, arguments.count)
    columns = dict.fromkeys(key for figures in found.values() for key in figures)
    rows = [{"what": name, **dict.fromkeys(columns), **figures} for name, figures in found.items()]
    report("_".join(("release", arguments.part, *(arguments.engine or ()))), rows)


if __name__ == "__main__":
    main()
