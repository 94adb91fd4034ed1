"""One session under eight threads with `close` at a random time: what is wrong, what crashes, what is refused.

python benchmarks/threads.py x86-cpu x86-cpu:openvino android x86-cpu:aotinductor iphone-15 [--runs 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness import report, scratch

import deploykit
from deploykit.plugin.registry import resolve
from deploykit.testing import hammer, models
from deploykit.testing.conformance import batches

_THREADS = 8


def hammered(target: str, folder: Path, *, runs: int, rounds: int) -> dict[str, Any]:
    """Export a small int8 CNN for a target, and count over `rounds` sessions."""
    model, example = models.residual_cnn()
    artifact = deploykit.export(
        model, target, "int8", example_inputs=example, calibration=batches(example), output=folder / "artifact",
        profile=False, progress=False,
    )  # fmt: skip
    feeds = hammer.variants(artifact.golden().inputs[0], _THREADS)
    counts = {"right": 0, "wrong": 0, "refused": 0}
    raised: list[str] = []
    for seed in range(rounds):
        session = resolve(target).target.open_for_parity(artifact)
        moment = hammer.random_moment(session, feeds, runs=runs, seed=seed)
        found = hammer.hammer(session, feeds, runs=runs, close_after=moment)
        counts = {name: count + getattr(found, name) for name, count in counts.items()}
        raised += found.raised
    return {"target": target, "runs": _THREADS * runs * rounds, **counts, "raised": len(raised), "first": raised[:1]}


def main() -> None:
    """Measure, print, and write results/threads.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--runs", type=int, default=1000, help="of each thread")
    parser.add_argument("--rounds", type=int, default=3, help="sessions of each target")
    given = parser.parse_args()
    rows = []
    for target in given.targets:
        with scratch() as folder:
            rows.append(hammered(target, folder, runs=given.runs, rounds=given.rounds))
    report("threads", rows, notes=["refused: the session was closed; every other exception counts as raised"])


if __name__ == "__main__":
    main()
