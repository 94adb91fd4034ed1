"""The ladder: what each rung brings in dB, the share of multiply-accumulates that stays in int8, and seconds.

    python benchmarks/ladder.py [--networks vit swin convnext lstm llama] [--targets x86-cpu] [--min-sqnr-db 30]
                                [--precision int8] [--large] [--nncf] [--modelopt PYTHON]

Random weights, seeded inputs (`ladder_networks.py`): 24 samples for calibration, of which some are held out and judged.
`ptq` is the plain export, `artifact` the confirmation of what was kept; `all` has the SQNR of what was kept on 16 fresh
samples, too, in its runtime or the reference of it. With `--nncf` NNCF's accuracy control quantises the same float ONNX
file to the same goal, a noise of 10^(-dB/10); with `--modelopt` NVIDIA's `auto_quantize` does so in an environment of
its own (`pip install torch transformers nvidia-modelopt requests`). Rows of other networks, targets and goals stay in
the file, which is one of CPUs without VNNI (`ladder_without_vnni.json`) where this one has none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ladder_peers as peers
from claims import fresh_db
from harness import RESULTS, quiet, record, report, scratch
from ladder_networks import MAKERS, Network, network
from ladder_peers import row_of

import deploykit
from deploykit import pipeline
from deploykit.contract.host import this_host

Shared = tuple[Any, Any, float]


def cpu_s() -> float:
    """Seconds of CPU of this process and of its children: a converter may be a process of its own, and go on living."""
    children = sum(_spent(path) for path in Path("/proc/self/task").glob("*/children"))
    return sum(os.times()[:4]) + children


def _spent(path: Path) -> float:
    total = 0.0
    for child in path.read_text().split():
        with contextlib.suppress(OSError):  # it has ended, and is counted with those that have
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            total += sum(map(_spent, Path(f"/proc/{child}/task").glob("*/children")))
    return total


def captured_once(made: Network) -> Shared:
    """One capture and one calibration for all targets; and the seconds of CPU that they took, which each is charged."""
    began = cpu_s()
    with quiet():
        captured = pipeline.capture(made.model, example_inputs=(made.samples[0],))
        run = pipeline.calibrate(captured, made.samples, progress=False)
    return captured, run, cpu_s() - began


def climbed(
    name: str, made: Network, shared: Shared, target: str, precision: str, least: float, folder: Path
) -> Iterator[dict[str, Any]]:
    """Every rung of one search; seconds are of the CPU for the whole, and of the clock for each rung."""
    captured, run, before = shared
    began = cpu_s()
    with quiet():
        plan = deploykit.tune(
            captured, target, precision, calibration=run, min_sqnr_db=least, strict=False,
            output=folder / f"{name}-{target}".replace(":", "-"), profile=False, progress=False,
        )  # fmt: skip
    spent = cpu_s() - began + before
    target = target if precision == "int8" else f"{target} {precision}"
    start = plan.ladder[0].sqnr_db
    for step in plan.ladder:
        gained = None if step.sqnr_db is None or start is None else step.sqnr_db - start
        yield row_of(
            name, target, step.step, step.outcome, sqnr_db=step.sqnr_db, over_start_db=gained,
            int8_share=step.int8_share, seconds=step.seconds,
        )  # fmt: skip
    with quiet():
        fresh = fresh_db(made.model, plan.best, [(x,) for x in made.fresh])
    last = next(step for step in reversed(plan.ladder) if step.on == "artifact")
    outcome = f"all: {least:g} dB {'met' if plan.met else 'missed'}"
    reason = (
        "" if plan.met else "; ".join(dict.fromkeys(each.reason for each in plan.ladder if each.outcome == "failed"))
    )
    yield row_of(
        name, target, outcome, reason, sqnr_db=last.sqnr_db, fresh_db=fresh, int8_share=last.int8_share, seconds=spent
    )


def rows_of(arguments: argparse.Namespace, name: str, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of one network, target after target, peer after peer."""
    made, least = network(name, arguments.large), arguments.min_sqnr_db
    shared = captured_once(made) if arguments.targets else None
    for target in arguments.targets:
        assert shared is not None
        yield list(climbed(name, made, shared, target, arguments.precision, least, folder))
    if arguments.nncf:
        yield [peers.tried(name, peers.NNCF, partial(peers.nncf, name, made, least, folder))]
    for method in ("gradient", "kl_div") if arguments.modelopt else ():
        make = partial(peers.modelopt, name, made, least, folder, arguments.modelopt, method, arguments.large)
        yield [peers.tried(name, f"ModelOpt auto_quantize, {method}", make)]


def _told(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row is of: network, target or peer, and goal."""
    goal = row["step"].partition(" dB ")[0] if row["step"].startswith("all") else ""
    return row["network"], row["target"], goal


def kept(path: Path, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of earlier runs, without those that are measured again.

    The rungs of a search stand before its `all`, and go with it.
    """
    measured, old, group = {_told(row) for row in new}, [], list[dict[str, Any]]()
    for row in json.loads(path.read_text())["rows"] if path.is_file() else ():
        group.append(row)
        if row["step"].startswith("all"):
            old += [] if _told(row) in measured else group
            group = []
    return old


def main() -> None:
    """Search for each network on each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="*", default=["vit", "swin", "convnext", "lstm", "llama"], choices=list(MAKERS)
    )
    parser.add_argument("--targets", nargs="*", default=["x86-cpu"])
    parser.add_argument("--min-sqnr-db", type=float, default=30.0)
    parser.add_argument("--precision", default="int8", help="of the rows of targets; peers are asked for int8")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--nncf", action="store_true")
    parser.add_argument("--modelopt", metavar="PYTHON", help="a Python that has nvidia-modelopt and transformers")
    arguments = parser.parse_args()
    result = "ladder_large" if arguments.large else "ladder"
    result += "" if this_host().has("vnni") else "_without_vnni"
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        with scratch() as folder:
            for found in rows_of(arguments, name, folder):
                rows += found
                print(found[-1], flush=True)
                record(
                    result, [*kept(RESULTS / f"{result}.json", rows), *rows], notes=NOTES
                )  # a run that is cut keeps its rows
    report(result, [*kept(RESULTS / f"{result}.json", rows), *rows], notes=NOTES)


NOTES = (
    "random weights; sqnr_db on samples that calibration did not see, fresh_db on 16 that nothing saw",
    "seconds of `all` are of the CPU, of a rung of the clock",
    "int8_share is of the multiply-accumulates, products of two tensors among them; ModelOpt's is of a simulation",
    "our gate is the SQNR to expect of other samples, so that more than the goal is reached; peers stop at the goal",
)


if __name__ == "__main__":
    main()
