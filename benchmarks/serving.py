"""What `deploykit serve` costs and holds: CPU a request, throughput beside FastAPI and Ray Serve, bounds, the tuner.

python benchmarks/serving.py [--peers-python PYTHON] [--parts cost bounds memory tuner]

`--peers-python` has fastapi and `ray[serve]` beside deploykit's own packages. Ray listens on all interfaces: run the
whole program in a network namespace that has only loopback,
    unshare -n sh -c 'ip link set lo up && exec python benchmarks/serving.py --peers-python PYTHON'
All servers run the same artifact with one runtime thread and are asked by the same clients over loopback, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from harness import report, scratch

import deploykit
from deploykit.testing import models
from deploykit_serving.load import Load, infer_request, put_under_load
from deploykit_serving.measuring import Trial
from deploykit_serving.settings import Settings
from deploykit_serving.tuning import Candidate, Limits, candidates, search

_HERE = Path(__file__).parent
_TURNS = 4
_SECONDS = 1.0
_CLIENTS = (1, 16)
_PEERS = ("fastapi", "fastapi-threads", "ray")


@dataclass
class Server:
    name: str
    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Of the process and its children."""
        total = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                total += times.user + times.system
        return total


@contextlib.contextmanager
def started(name: str, command: Sequence[str]) -> Iterator[Server]:
    own = [path for path in sys.path if path.startswith(str(_HERE.parent)) and path != str(_HERE)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(own), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, env=env
    )
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line.decode(errors="replace"))
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] == "ready":
                    break
        else:
            raise RuntimeError(f"{name} did not start: {''.join(said[-15:])}")
        threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
        yield Server(name, event["url"], psutil.Process(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ours(artifact: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "deploykit", "serve", f"m={artifact}", "--port", "0", "--threads", "1",
            "--no-log-requests", *more]  # fmt: skip  # the peers log nothing


def peer(python: str, kind: str, artifact: Path, port: int) -> list[str]:
    return [python, str(_HERE / "serving_peers.py"), kind, str(artifact), str(port)]


def exported(folder: Path) -> dict[str, Path]:
    import torch

    found = {}
    for name, make, precision in (
        ("mlp fp32", models.mlp, "fp32"),
        ("small CNN int8", models.residual_cnn, "int8"),
        ("MobileNet-like int8", models.mobilenet_like, "int8"),
    ):
        model, example = make()
        generator = torch.Generator().manual_seed(0)
        data = [torch.randn(8, *example[0].shape[1:], generator=generator) for _ in range(4)]
        more = {"calibration": data} if precision == "int8" else {}
        found[name] = folder / name.replace(" ", "-")
        deploykit.export(model, "x86-cpu", precision, example_inputs=example, dynamic_batch=True, profile=False,
                         progress=False, min_placement=0, output=found[name], **more)  # fmt: skip
    return found


def request_of(url: str, artifact: Path, *, binary: bool) -> bytes:
    found = deploykit.load(artifact)
    feeds = {name: array[:1] for name, array in found.golden().inputs[0].items()}
    return infer_request(url, "m", found.inputs, feeds, binary=binary)


def session_cpu_ms(artifact: Path) -> float:
    """Processor time of the session's own call, of one row and one thread."""
    found = deploykit.load(artifact)
    feeds = {name: array[:1] for name, array in found.golden().inputs[0].items()}
    with found.open(threads=1) as session:
        session.times_ms(feeds, runs=200)
        turns = []
        for _ in range(5):
            began = time.process_time()
            session.times_ms(feeds, runs=400)
            turns.append((time.process_time() - began) / 400 * 1e3)
    return min(turns)


def cost(artifacts: dict[str, Path], python: str | None) -> list[dict[str, Any]]:
    """Servers in turns: answers a second and processor time of each."""
    rows = []
    for name, artifact in artifacts.items():
        own = session_cpu_ms(artifact)
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(started("deploykit", ours(artifact)))]
            if python is not None:
                servers += [
                    stack.enter_context(started(kind, peer(python, kind, artifact, 18_500 + index)))
                    for index, kind in enumerate(_PEERS)
                    if kind != "ray" or "small" in name  # whose start takes half a minute
                ]
            for clients in _CLIENTS:
                rows += _in_turns(name, servers, artifact, clients, own)
    return rows


def _in_turns(name: str, servers: list[Server], artifact: Path, clients: int, own: float) -> list[dict[str, Any]]:
    looks: dict[str, list[tuple[Load, float]]] = {}
    for turn in range(_TURNS + 1):
        for server in servers:
            ways = (True, False) if server.name == "deploykit" else (False,)
            for binary in ways:
                request = request_of(server.url, artifact, binary=binary)
                before = server.cpu_s()
                load = put_under_load(server.url, request, clients=clients, seconds=_SECONDS)
                if load.other or load.refused_ms:
                    raise RuntimeError(f"{server.name}: {load.other}, {len(load.refused_ms)} refused")
                if turn:  # the first warms up
                    label = f"{server.name}, {'binary' if binary else 'JSON'}"
                    cpu_ms = (server.cpu_s() - before) / len(load.answered_ms) * 1e3
                    looks.setdefault(label, []).append((load, cpu_ms))
    base = statistics.median(load.per_second for load, _ in looks["deploykit, JSON"])
    base_cpu = statistics.median(cpu for _, cpu in looks["deploykit, JSON"])
    rows = []
    for label, found in looks.items():
        rate = statistics.median(load.per_second for load, _ in found)
        cpu = statistics.median(cpu for _, cpu in found)
        rows.append(
            {
                "model": name,
                "clients": clients,
                "server": label,
                "answers/s": round(rate),
                "deploykit JSON is x as fast": round(base / rate, 2),
                "x as fast by CPU": round(cpu / base_cpu, 2),
                "server CPU ms a request": round(cpu, 3),
                "beyond the session's": round(cpu - own, 3),
                "p99 ms": round(float(np.percentile([ms for load, _ in found for ms in load.answered_ms], 99)), 2),
            }
        )
    return rows


def bounds(artifact: Path) -> list[dict[str, Any]]:
    """200 clients against a queue of 64 rows, with requests of one row and of eight, which fill it at once."""
    return [row for rows in (1, 8) for row in _bounds(artifact, rows)]


def _bounds(artifact: Path, rows: int) -> list[dict[str, Any]]:
    with started("deploykit", ours(artifact, "--max-queue", "64")) as server:
        found = deploykit.load(artifact)
        feeds = {n: np.concatenate([a[:1]] * rows) for n, a in found.golden().inputs[0].items()}
        request = infer_request(server.url, "m", found.inputs, feeds)
        load = put_under_load(server.url, request, clients=200, seconds=10.0, warm_s=1.0)
        figures = metrics(server.url)
    what = f"200 clients, requests of {rows} rows of {len(request) // rows // 1024} KiB: "
    return [
        {"what": f"{what}refused", "measured": len(load.refused_ms), "goal": "> 0"},
        {"what": f"{what}answered", "measured": len(load.answered_ms), "goal": "> 0"},
        {"what": f"{what}other statuses", "measured": sum(load.other.values()), "goal": 0},
        {
            "what": f"{what}most rows that ever waited",
            "measured": figures["deploykit_queue_rows_peak"],
            "goal": "<= 64",
        },
        {"what": f"{what}p50 of refusals, ms", "measured": _percentile(load.refused_ms, 50), "goal": ""},
        {"what": f"{what}p99 of refusals, ms", "measured": _percentile(load.refused_ms, 99), "goal": "<= 300"},
    ]


def _percentile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.percentile(values, share)), 2) if values else None


def metrics(url: str) -> dict[str, float]:
    import urllib.request

    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, _, value in lines}


def memory(artifact: Path) -> list[dict[str, Any]]:
    """Resident memory of the server while it answers 100,000 requests of 16 clients."""
    with started("deploykit", ours(artifact)) as server:
        request = request_of(server.url, artifact, binary=True)
        resident = {0: server.process.memory_info().rss}
        for done in (5_000, 20_000, 50_000, 100_000):
            put_under_load(server.url, request, clients=16, seconds=300, requests=done - max(resident))
            resident[done] = server.process.memory_info().rss
    rows = [
        {"what": f"resident MiB after {count:,} requests", "measured": round(value / 2**20, 2), "goal": ""}
        for count, value in resident.items()
    ]
    grown = round((resident[100_000] - resident[5_000]) / 2**20, 2)
    return [*rows, {"what": "growth from 5,000 to 100,000, MiB", "measured": grown, "goal": "flat"}]


def tuner(artifact: Path, limits: Limits) -> list[dict[str, Any]]:
    """The search, an exhaustive one, and the ends of both measured in turns."""
    trial = Trial(deploykit.load(artifact), Settings(), 16, 0.7, 1.0)
    among = [one for one in candidates(batched=True, max_batch=16) if one.max_batch in (1, 8)]
    found = search(among, trial, limits)
    looks = trial.in_turns(among, 3)
    passing = {
        one: statistics.median(look.rows_per_s for look in each)
        for one, each in looks.items()
        if max(look.peak_bytes for look in each) <= (limits.max_memory_bytes or 1 << 62)
        and statistics.median(look.p99_ms for look in each) <= (limits.max_p99_ms or 1e9)
    }
    best = max(passing, key=lambda one: passing[one])
    pair = trial.in_turns(list(dict.fromkeys([found.best.candidate, best])), 5)
    rate = {one: statistics.median(look.rows_per_s for look in each) for one, each in pair.items()}
    measured = sum(one.measured is not None for one in found.tried)
    return [
        {"what": f"settings measured of {len(among)}", "measured": measured, "goal": ""},
        {"what": "end of the search", "measured": words(found.best.candidate), "goal": ""},
        {"what": "end of exhaustive search", "measured": words(best), "goal": ""},
        {"what": "throughput of the first / of the second, in turns",
         "measured": round(rate[found.best.candidate] / rate[best], 3), "goal": ">= 0.95"},
        {"what": "peak memory of the end of the search, MiB",
         "measured": round(max(look.peak_bytes for look in pair[found.best.candidate]) / 2**20, 1),
         "goal": f"<= {(limits.max_memory_bytes or 0) / 2**20:.0f}"},
    ]  # fmt: skip


def words(one: Candidate) -> str:
    return f"{one.instances} x {one.threads} x {one.max_batch}"


def main() -> None:
    """Measure the parts that were asked for, and write results/serving-<part>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python")
    parser.add_argument("--parts", nargs="+", default=["cost", "bounds", "memory", "tuner"])
    arguments = parser.parse_args()
    with scratch() as folder:
        artifacts = exported(folder)
        small = artifacts["small CNN int8"]
        if "cost" in arguments.parts:
            notes = [
                "instances, runtime threads and batch 1",
                "medians over turns; CPU of the process and its children",
            ]
            report("serving-cost", cost(artifacts, arguments.peers_python), notes=notes)
        if "bounds" in arguments.parts:
            load = f"load of the machine: {os.getloadavg()[0]:.0f}; niceness of server and clients: {os.nice(0)}"
            report("serving-bounds", bounds(small), notes=[load])
        if "memory" in arguments.parts:
            report("serving-memory", memory(small))
        if "tuner" in arguments.parts:
            report("serving-tuner", tuner(small, Limits(512 << 20, 100.0)), notes=["instances x threads x batch"])


if __name__ == "__main__":
    main()
