"""Calibrate once, in two shards, and use the merged table for several exports.

    python examples/own_calibration.py [--output FOLDER]

A table holds statistics, not scales: which range method and which scheme is used is decided by each export.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def main() -> None:
    """Two shards, one table, three exports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    output = parser.parse_args().output
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    example_inputs = (torch.randn(1, 3, 32, 32),)
    data = [torch.randn(1, 3, 32, 32) for _ in range(16)]

    # Two machines could do one shard each: statistics of the same model merge, in any order.
    first = deploykit.calibrate(model, data[:8], example_inputs=example_inputs)
    second = deploykit.calibrate(model, data[8:], example_inputs=example_inputs)
    table = first.merge(second)
    table.save(output / "two-shards.calibration")

    for method in ("minmax", "percentile", "mse"):
        artifact = deploykit.export(
            model,
            target="x86-cpu",
            precision="int8",
            example_inputs=example_inputs,
            calibration=table,
            calibration_method=method,
            profile=False,
            output=output / f"calibrated-{method}",
        )
        assert artifact.parity is not None
        print(f"{method:<10} {table.samples} samples  SQNR {artifact.parity.sqnr_db:.1f} dB")


if __name__ == "__main__":
    main()
