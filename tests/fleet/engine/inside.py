"""Run by `test_on_ray.py` in a network namespace of its own: a release, what listens meanwhile, and what is left of it.

Argument: JSON with `command`, `kill` (what to kill once, or ""), `after_s`. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil

KINDS = {
    "driver": lambda words: "deploykit" in words and "release" in words and "engine" in words,
    "host": lambda words: "deploykit_fleet.engine.ray_host" in words,
    "worker": lambda words: "deploykit_fleet.engine.worker" in words,
    "raylet": lambda words: "/raylet/raylet" in words.split(" ")[0],
    "gcs": lambda words: "gcs_server" in words.split(" ")[0],
    "task": lambda words: words.startswith("ray::attempt"),
    "agent": lambda words: words.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent")) or "agent.py" in words,
}


def ours() -> dict[int, str]:
    """Command lines of the processes in this network namespace, but for this one and its parents."""
    here, found = os.readlink("/proc/self/ns/net"), {}
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            where = os.readlink(f"/proc/{process.pid}/ns/net")
            if process.pid not in spared and where == here and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
    return found


def main() -> None:
    told = json.loads(sys.argv[1])
    chance, addresses, killed = random.Random(told.get("seed", 0)), set(), ""
    process = subprocess.Popen(told["command"], stdout=subprocess.DEVNULL)
    began = time.monotonic()
    while process.poll() is None:
        for connection in psutil.net_connections("inet"):
            if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                addresses.add(connection.laddr.ip)
        wanted = [pid for pid, words in ours().items() if told["kill"] and KINDS[told["kill"]](words)]
        if wanted and not killed and time.monotonic() - began > told["after_s"]:
            pid = chance.choice(wanted)
            killed = told["kill"]
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    end = time.monotonic() + 10.0
    while (left := ours()) and time.monotonic() < end:
        time.sleep(0.1)
    seconds = time.monotonic() - end + 10.0
    print(json.dumps({"code": process.returncode, "addresses": sorted(addresses), "killed": killed,
                      "left": sorted(left.values()), "gone_s": round(seconds, 2)}))  # fmt: skip


if __name__ == "__main__":
    main()
