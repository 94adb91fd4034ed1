"""Which range method is best over networks and schemes, and what the correction of biases buys: simulated int8.

    python benchmarks/ranges.py [--models digits_resnet resnet18 ...] [--seeds 4]

Each network is captured and calibrated once; every method then places its q/dq nodes, which run in PyTorch on held-out
samples. The digits networks are trained once per seed, because one network is one draw: their figures move by half a
decibel with any change of a scale. `default` is what `deploykit.export` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from harness import quiet, report, threads
from quality import CASES, Case, digits_case

from deploykit.capture import capture
from deploykit.contract.scheme import Scheme
from deploykit.judge.parity import OutputComparison
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_calibration.simulate import SimulatedModel
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86

SCHEMES = (TENSORRT, ONNX_X86)
_LABELS = ("model", "scheme")
METHODS = ("default", "minmax", "mse", "percentile", "percentile:99.999", "entropy")


def cases(names: list[str], seeds: int) -> Iterator[tuple[str, Case]]:
    """Networks by name; the trained ones once per seed."""
    for name in names:
        if name.startswith("digits_"):
            for seed in range(seeds):
                yield f"{name} {seed}", digits_case(name.removeprefix("digits_"), seed=seed)
        else:
            yield name, CASES[name]()


class Judge:
    """One network with its calibration and what it gives in float for the held-out samples."""

    def __init__(self, case: Case) -> None:
        with quiet(), torch.inference_mode():
            self.captured = capture(case.model, example_inputs=case.calibration[0], dynamic_batch=True)
            self.table = calibrate(self.captured, case.calibration, progress=False)
            batch = [torch.cat(tensors) for tensors in zip(*case.test, strict=True)]
            names = [spec.name for spec in self.captured.inputs]
            self.feeds = {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)}
            self.wanted = case.model(*batch).numpy()

    def sqnr_db(self, scheme: Scheme, method: str) -> float:
        """Of the first output."""
        simulated = SimulatedModel(self.captured, place(self.captured, self.table, scheme, method=method))
        output = self.captured.outputs[0].name
        comparison = OutputComparison(output)
        comparison.add(self.wanted, simulated.run(self.feeds)[output])
        return round(comparison.metrics.sqnr_db, 2)


def run_case(name: str, case: Case) -> Iterator[dict[str, Any]]:
    """A row for each scheme."""
    judge = Judge(case)
    for scheme in SCHEMES:
        row: dict[str, Any] = {"model": name, "scheme": scheme.name}
        row |= {method: judge.sqnr_db(scheme, method) for method in METHODS}
        row["default, biases as they were"] = judge.sqnr_db(replace(scheme, bias_correction=False), "default")
        print(row, flush=True)
        yield row


def main() -> None:
    """All networks; a table and `results/ranges.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    threads()
    rows = [row for name, case in cases(arguments.models, arguments.seeds) for row in run_case(name, case)]
    rows += [mean_of([row for row in rows if row["scheme"] == scheme.name]) for scheme in SCHEMES]
    report("ranges", rows, notes=["SQNR in dB of simulated int8 against the float PyTorch model, held-out samples"])


def mean_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every column of figures."""
    figures = {key: round(float(np.mean([row[key] for row in rows])), 2) for key in rows[0] if key not in _LABELS}
    return {"model": "mean", "scheme": rows[0]["scheme"], **figures}


if __name__ == "__main__":
    main()
