"""Do boards keep what they promise? Cut connections, clients that race, clients that die; behind a real sshd.

    cd benchmarks && python devices.py [--cuts 20] [--size-mib 24]

Needs the Debian packages openssh-server and openssh-client, and nothing of PyTorch. Everything is on loopback: the
board is this machine in a home of its own, so no figure here is about the speed of a network.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import report, scratch

from deploykit.places import Ssh
from deploykit.testing.loopback import ADDRESS, Cutter, Loopback
from deploykit_fleet.devices.lease import Lease, release

MIB = 1 << 20
GOALS = {
    "right_files": "all",
    "sent_again_mib_most": "<= 1",
    "second_run_bytes": "0",
    "shared": "0",
    "seconds_until_the_next_has_it": "<= 60",
}


def cuts(board: Loopback, folder: Path, wanted: int, size: int, seed: int = 0) -> dict[str, Any]:
    """Files whose connection is cut once each, after a random number of bytes: are they right, and what is resent?"""
    random = np.random.default_rng(seed)
    cutter = Cutter(board.port)
    _use(board.write_client(folder / "cut/ssh", port=cutter.port))
    again, right, at = [], 0, []
    for number in range(wanted):
        data = random.bytes(size)
        digest = hashlib.sha256(data).hexdigest()
        place = Ssh(ADDRESS)
        place.line.run("true")  # the connection is there: what is cut is the transfer
        before, cut_at = cutter.cuts, int(random.integers(0, size))
        cutter.cut_after(cut_at)
        place.transfer.send(data, f"out/{number}", digest)
        while cutter.cuts == before and cutter.waits:  # it fell behind the last byte: let it fall somewhere
            place.line.run("true")
        again.append(place.transfer.sent_bytes - size)
        at.append(cut_at)
        right += not place.transfer.missing("out", {str(number): digest})
        right -= hashlib.sha256((board.home / "out" / str(number)).read_bytes()).hexdigest() != digest
        place.line.close()
    cutter.close()
    return {
        "cuts": cutter.cuts,
        "right_files": right,
        "sent_again_mib_most": round(max(again) / MIB, 3),
        "sent_again_mib_mean": round(float(np.mean(again)) / MIB, 3),
        "file_mib": size / MIB,
    }


def second_run(board: Loopback, folder: Path, size: int) -> dict[str, Any]:
    """How long a file takes, and what a second time sends."""
    _use(board.write_client(folder / "plain/ssh"))
    data = np.random.default_rng(1).bytes(size)
    digest, place = hashlib.sha256(data).hexdigest(), Ssh(ADDRESS)
    place.line.run("true")
    began = time.perf_counter()
    place.transfer.send(data, "out/whole", digest)
    seconds, sent = time.perf_counter() - began, place.transfer.sent_bytes
    for name in place.transfer.missing("out", {"whole": digest}):
        place.transfer.send(data, f"out/{name}", digest)
    commands = [_timed(lambda: place.line.run("true")) for _ in range(20)]
    place.line.close()
    return {
        "mib_per_s": round(size / MIB / seconds, 1),
        "second_run_bytes": place.transfer.sent_bytes - sent,
        "command_ms_median": round(float(np.median(commands)) * 1e3, 1),
    }


def race(board: Loopback, folder: Path, clients: int, rounds: int) -> dict[str, Any]:
    """Processes that take and give back one lease as fast as they can: is anybody ever inside with another?"""
    results = folder / "race"
    results.mkdir()
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_racer, args=(results, rounds)) for _ in range(clients)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    found = [path.read_text() for path in results.glob("*.done")]
    return {"clients": clients, "leases": len(found), "shared": found.count("shared")}


def _racer(results: Path, rounds: int) -> None:
    place, mark = Ssh(ADDRESS), results / "inside"
    for number in range(rounds):
        lease = Lease(place.line, "board", wait_s=600.0)
        with lease:
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                said = "alone"
                time.sleep(0.005)
                mark.unlink()
            except FileExistsError:
                said = "shared"
        (results / f"{os.getpid()}-{number}.done").write_text(said)
    place.line.close()


def dead_client(board: Loopback) -> dict[str, Any]:
    """Seconds from the SIGKILL of a client until another one has the lease."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    client = context.Process(target=_holder, args=(ready,))
    client.start()
    ready.wait(60)
    time.sleep(12.0)  # it has been renewed once
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    began, place = time.perf_counter(), Ssh(ADDRESS)
    with Lease(place.line, "board", wait_s=120.0):
        seconds = time.perf_counter() - began
    client.join()
    release(place.line)
    place.line.close()
    return {"seconds_until_the_next_has_it": round(seconds, 1)}


def _holder(ready: Any) -> None:
    with Lease(Ssh(ADDRESS).line, "board"):
        ready.set()
        threading.Event().wait()


def _use(client: Path) -> None:
    os.environ["PATH"] = f"{client.parent}{os.pathsep}{os.environ['PATH']}"


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--size-mib", type=int, default=8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    with scratch() as folder:
        board = Loopback(folder / "board")
        try:
            found = {
                "cut": cuts(board, folder, given.cuts, given.size_mib * MIB),
                "transfer": second_run(board, folder, 64 * MIB),
                "race": race(board, folder, given.clients, given.rounds),
                "dead client": dead_client(board),
            }
        finally:
            board.kill()
    rows = [
        {"what": what, "figure": name, "value": value, "goal": GOALS.get(name)}
        for what, figures in found.items()
        for name, value in figures.items()
    ]
    report("devices", rows, notes=["a real sshd on loopback: no figure is about the speed of a network"])


if __name__ == "__main__":
    main()
