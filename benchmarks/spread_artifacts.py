"""A trained network whose channels are far apart, as artifacts: what a target's int8 keeps of its accuracy.

    python benchmarks/spread_artifacts.py [--targets x86-cpu android ...] [--seeds 2]

MobileNetV2's blocks, trained here on scikit-learn's digits, with the channels between its bottlenecks multiplied by
log-normal factors (e^3) and divided by them where they are read: the float network computes the same, and one scale
for a tensor is lost on it. Every artifact is opened and run on the 597 images that nothing saw; what has no device here
runs in the toolchain's reference, and says so. Goal: at most 0.5 points below float. Rows of other targets stay in the
file, so that environments (TVM has its own) add to one table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, quiet, record, scratch
from quality import Case, digits_case
from rounding import spread_channels

import deploykit
from deploykit import pipeline
from deploykit.contract.errors import DeploykitError
from deploykit.judge.scores import fall_of, scores_of

NAME = "rounding_artifacts"
TARGETS = (
    *("x86-cpu", "x86-cpu-avx2", "x86-cpu:openvino", "x86-cpu:aotinductor", "android", "pixel-9", "iphone-15"),
    *("macbook-m3", "jetson-orin", "jetson-xavier", "rtx-4090", "amd-mi210", "x86-cpu:tvm", "raspberry-pi-4"),
)
ALGORITHMS: tuple[tuple[str, ...], ...] = ((), ("equalize",), ("equalize", "gptq"))
NOTES = ["int8 artifacts, 597 held-out digits one by one; interval: 95 % of the drop, paired (Agresti and Min)"]


def rows_of(target: str, seed: int, case: Case) -> list[dict[str, Any]]:
    """One row for each list of algorithms."""
    with quiet():
        plain = pipeline.capture(case.model, example_inputs=case.calibration[0])
    model = spread_channels(plain, seed, norms=False).graph_module
    rows = []
    for algorithms in ALGORITHMS:
        row: dict[str, Any] = {"target": target, "seed": seed, "algorithms": " + ".join(algorithms)}
        try:
            with scratch() as folder:
                row |= judged(model, target, algorithms, case, folder)
        except DeploykitError as error:
            row["missing"] = str(error).splitlines()[0][:160]
        print(row, flush=True)
        rows.append(row)
    return rows


def judged(model: Any, target: str, algorithms: tuple[str, ...], case: Case, folder: Path) -> dict[str, Any]:
    """Accuracy of float and artifact on the same images, and the interval of what it fell."""
    with quiet():
        artifact = deploykit.export(
            model,
            target=target,
            precision="int8",
            example_inputs=case.calibration[0],
            calibration=case.calibration,
            algorithms=algorithms,
            output=folder / "artifact",
            profile=False,
            strict=False,
            progress=False,
        )
        name, output = artifact.manifest.inputs[0].name, artifact.manifest.outputs[0].name
        with torch.inference_mode():
            float_logits = np.concatenate([case.model(*sample).numpy() for sample in case.test])
        with artifact.plugin().open_for_parity(artifact) as session:  # TensorRT's file runs in ONNX Runtime
            logits = np.concatenate([session.run({name: sample[0].numpy()})[output] for sample in case.test])
    right = [scores_of((found.argmax(1) == case.labels).astype(float)) for found in (float_logits, logits)]
    fall = fall_of(*right)
    assert fall is not None
    noise = float(np.square(float_logits - logits, dtype=np.float64).sum())
    sqnr = 10 * np.log10(float(np.square(float_logits, dtype=np.float64).sum()) / noise)
    parity = artifact.manifest.parity
    return {
        "float top-1 %": round(100 * right[0].value, 2),
        "artifact top-1 %": round(100 * right[1].value, 2),
        "drop, points": round(100 * (right[0].value - right[1].value), 2),
        "interval, points": [round(100 * fall.low, 2), round(100 * fall.high, 2)],
        "SQNR dB": round(float(sqnr), 1),
        "evidence": str(parity.evidence) if parity is not None else None,
    }


def main() -> None:
    """Every target; `results/rounding_artifacts.json` grows with each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    for seed in range(arguments.seeds):
        case = digits_case("mobilenet", seed=seed)
        for target in arguments.targets:
            rows = [row for row in rows if (row["target"], row["seed"]) != (target, seed)]
            rows = [*rows, *rows_of(target, seed, case)]
            record(NAME, rows, notes=NOTES)


if __name__ == "__main__":
    main()
