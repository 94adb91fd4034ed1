"""Does a report find a model that became a tenth slower, and nothing where nothing changed? How large is one?

python benchmarks/report.py [--precision int8] [--threads 1] [--runs 20] [--nice -20]

Profiles want a machine of their own; `--nice` gives them most of one that is shared (below 0, root alone may).
Each profile is measured by a process of its own (`deploykit profile --save`), as two releases are: the same file twice
for `no change`, and the file of a network with a tenth more layers for `planted`. Sizes are of a report of 40 builds of
a network of 60 layers, in which no name of a layer is like that of another build.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, report, scratch
from torch import nn

import deploykit
from deploykit.judge.profiling import Profile
from deploykit_fleet.report.significance import is_busy
from deploykit_fleet.report.verdicts import Change

_DEPTH, _WIDTH, _SIZE = 20, 32, 32
_BUILDS, _LAYERS = 40, 60
_AGAIN = 30


class Chain(nn.Module):
    """Convolutions that all cost the same, so that a tenth more of them is a tenth more time."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, _WIDTH, 1)
        self.body = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(_WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.body:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


def export(folder: Path, precision: str, depth: int, *, profile: bool = False) -> deploykit.Artifact:
    samples = [(torch.randn(1, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(i)),) for i in range(16)]
    return deploykit.export(
        Chain(depth).eval(), "x86-cpu", precision, example_inputs=samples[0], output=folder / f"{precision}-{depth}",
        calibration=samples if precision == "int8" else None, profile=profile, progress=False, strict=False,
    )  # fmt: skip


def measured(artifact: Path, folder: Path, name: str, threads: int, nice: int) -> tuple[Path, int]:
    """A copy of an artifact with a profile that a process of its own has measured, and how often the machine was busy.

    A report says that it was, and does not test such profiles: they are measured again, as its readers do.
    """
    copy = folder / name
    shutil.copytree(artifact, copy)
    program = ["nice", "-n", str(nice), sys.executable, "-m", "deploykit"]
    command = [*program, "profile", str(copy), "--save", "--threads", str(threads)]
    for again in range(_AGAIN):
        subprocess.run(command, check=True, capture_output=True)
        if not is_busy(deploykit.load(copy).profile.times.latency_ms):
            return copy, again
    return copy, _AGAIN


def latency(old: Path, new: Path, page: Path) -> Change:
    """What the report says of the latency."""
    made = deploykit.report(new, against=old, output=page)
    return next(change for change in made.comparison.changes if change.what == "latency")


def rounds(folder: Path, precision: str, threads: int, runs: int, nice: int) -> Iterator[dict[str, Any]]:
    """Verdicts and shifts of each run: the same again, and a tenth more."""
    before = export(folder, precision, _DEPTH).path
    after = export(folder, precision, _DEPTH + _DEPTH // 10).path
    for index in range(runs):
        place = folder / str(index)
        wanted = ((before, "old"), (before, "same"), (after, "slower"))
        found = [measured(of, place, name, threads, nice) for of, name in wanted]
        old, same, slower = (path for path, _ in found)
        changes = [latency(old, new, place / "page.html") for new in (same, slower)]
        medians = [_median(each) for each in (old, same, slower)]
        yield {
            "no_change": changes[0].verdict,
            "planted": changes[1].verdict,
            "shift_no_change": _shift(changes[0]),
            "shift_planted": _shift(changes[1]),
            "median_no_change": round(medians[1] / medians[0] - 1.0, 4),
            "median_planted": round(medians[2] / medians[0] - 1.0, 4),
            "again": sum(again for _, again in found),
        }
        print(index, changes[0].verdict, changes[1].verdict, flush=True)


def _shift(change: Change) -> float | None:
    """None where a profile was too busy to be tested."""
    return None if change.shift is None else round(change.shift.estimate, 4)


def _median(artifact: Path) -> float:
    profile: Profile = deploykit.load(artifact).profile
    return profile.latency_ms.p50


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of a report of many builds: one that was exported and profiled, under many names."""
    made = export(folder, "int8", _LAYERS - 2, profile=True)
    manifest, record = (json.loads((made.path / name).read_text()) for name in ("manifest.json", "profile.json"))
    for release in ("old", "new"):
        for index in range(_BUILDS):
            place = folder / release / f"build-{index}"
            place.mkdir(parents=True)
            renamed = json.dumps(manifest).replace('"body.', f'"body{index}.').replace('"conv2d', f'"conv2d_{index}')
            (place / "manifest.json").write_text(renamed)
            profile = json.dumps(record).replace(record["artifact"], _fingerprint(place))
            (place / "profile.json").write_text(profile.replace('"conv2d', f'"conv2d_{index}'))
    plain = deploykit.report(folder / "new").path.read_bytes()
    against = deploykit.report(folder / "new", against=folder / "old").path.read_bytes()
    found = {"report": plain, "report_against_another": against}
    return {name: len(page) for name, page in found.items()} | {"gzip": len(gzip.compress(against))}


def _fingerprint(artifact: Path) -> str:
    from deploykit.artifact.storage import sha256_of

    return sha256_of(artifact / "manifest.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="int8", choices=("int8", "fp32"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--nice", type=int, default=0)
    arguments = parser.parse_args()
    with scratch() as folder:
        found = list(rounds(folder, arguments.precision, arguments.threads, arguments.runs, arguments.nice))
        pages = sizes(folder / "sizes")
    row = {
        "precision": arguments.precision,
        "threads": arguments.threads,
        "nice": arguments.nice,
        "runs": len(found),
        "measured again": sum(each["again"] for each in found),
        "not tested": sum("untested" in (each["no_change"], each["planted"]) for each in found),
        "found of no change": sum(each["no_change"] in ("worse", "better") for each in found),
        "found of planted": sum(each["planted"] == "worse" for each in found),
        "shift of no change": _range(each["shift_no_change"] for each in found),
        "shift of planted": _range(each["shift_planted"] for each in found),
        "medians of no change": _range(each["median_no_change"] for each in found),
        "medians of planted": _range(each["median_planted"] for each in found),
    }
    told = ", ".join(f"{name} {size:,} bytes" for name, size in pages.items())
    report("report", [*_others(row), row], notes=[f"{_BUILDS} builds of {_LAYERS} layers: {told}"])


def _range(shifts: Iterable[float | None]) -> str:
    values = [100.0 * each for each in shifts if each is not None]
    return f"{min(values):+.1f} to {max(values):+.1f} %"


def _others(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What earlier calls measured of other precisions and numbers of threads: one call takes minutes."""
    path = RESULTS / "report.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    case = ("precision", "threads", "nice")
    return [each for each in rows if [each[of] for of in case] != [row[of] for of in case]]


if __name__ == "__main__":
    main()
