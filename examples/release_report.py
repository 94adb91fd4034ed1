"""Two releases of a small network, and one page that says what changed between them.

    python examples/release_report.py [--output FOLDER]

The second release has a deeper network: the report finds that it is slower and larger. Both are measured here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def network(depth: int) -> nn.Sequential:
    """A few convolutions and a classifier."""
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    )


def release(folder: Path, depth: int) -> Path:
    """The network in float and in int8, verified and profiled."""
    data = [(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)),) for seed in range(32)]
    for precision, calibration in (("fp32", None), ("int8", data)):
        deploykit.export(
            network(depth).eval(), "x86-cpu", precision, example_inputs=data[0], calibration=calibration,
            output=folder / precision, strict=False,
        )  # fmt: skip
    return folder


def main() -> None:
    """Export both releases, write the page, and say what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out"))
    output: Path = parser.parse_args().output
    before, after = release(output / "release-1", depth=8), release(output / "release-2", depth=12)
    made = deploykit.report(after, against=before)
    for change in made.findings:
        print(f"{change.entry}: {change.what} {change.old} -> {change.new} ({change.why})")
    print(f"{len(made.book.entries)} builds, {len(made.findings)} figures worse: {made.path}")


if __name__ == "__main__":
    main()
