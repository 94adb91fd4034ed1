"""The forms of int8 on this kind of CPU: `x86-cpu` (8-bit weights), `x86-cpu-avx2` (7 bits) and float32, in turns.

    python every_cpu.py [--models mobilenet_v2 resnet18 bert_base] [--turns 6]
    cc -O2 -shared -fPIC -o mask.so cpuid_mask.c -ldl && LD_PRELOAD=$PWD/mask.so python every_cpu.py
    qemu-x86_64-static -cpu Haswell .venv/bin/python every_cpu.py

The second line shows a CPU without VNNI on one that has it (x86-64 Linux with CPUID faulting): software then runs its
AVX2 kernels, at the speed that this silicon has for them. The third does so anywhere, for accuracy and size: nothing is
timed under emulation. Results go to `results/every_cpu_with_vnni.json` and `results/every_cpu_without_vnni.json`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import models
import torch
from harness import interleaved_ms, quiet, report, scratch

import deploykit
from deploykit.contract.cpuid import emulator
from deploykit.contract.host import this_host

FORMS = (
    *(("x86-cpu", "fp32"), ("x86-cpu", "int8"), ("x86-cpu-avx2", "int8")),
    *(("x86-cpu:openvino", "int8"), ("x86-cpu-avx2:openvino", "int8")),
)
DYNAMIC = (("x86-cpu", "int8-dynamic"), ("x86-cpu-avx2", "int8-dynamic"))


def forms(name: str, folder: Path) -> dict[str, deploykit.Artifact]:
    """The artifacts of a model, by target and precision; gates are reported and not enforced."""
    model, example = getattr(models, name)()
    transformer = name.startswith("bert")
    data = models.token_batches(8) if transformer else [image[None] for image in models.images(8)]
    made = {}
    for target, precision in (*FORMS, *(DYNAMIC if transformer else ())):
        static = deploykit.Precision(precision).is_static
        with quiet():
            made[f"{target} {precision}"] = deploykit.export(
                model, target, precision, example_inputs=example, calibration=data if static else None, profile=False,
                strict=False, progress=False, output=folder / f"{name}-{target.replace(':', '-')}-{precision}",
            )  # fmt: skip
    return made


def rows_of(name: str, turns: int) -> list[dict[str, Any]]:
    """Accuracy, latency on one thread and size of every form."""
    with scratch() as folder:
        made = forms(name, folder)
        if emulator():
            return [_row(name, label, artifact) for label, artifact in made.items()]
        feeds = next(iter(made.values())).golden().inputs[0]
        runs: dict[str, Callable[[], Any]] = {
            label: partial(artifact.open(threads=1).run, feeds) for label, artifact in made.items()
        }
        times = interleaved_ms(runs, turns, runs=5)
        base = min(next(iter(times.values())))
        found = {
            label: {"min_ms": round(min(each), 2), "x float32": round(min(each) / base, 3)}
            for label, each in times.items()
        }
        return [{**_row(name, label, artifact), **found[label]} for label, artifact in made.items()]


def _row(name: str, label: str, artifact: deploykit.Artifact) -> dict[str, Any]:
    parity = artifact.parity
    assert parity is not None
    simulated = parity.quantization.worst.sqnr_db if parity.quantization else None
    return {
        "model": name,
        "target": label,
        "SQNR dB": round(parity.sqnr_db, 2),
        "simulation dB": None if simulated is None else round(simulated, 2),
        "evidence": parity.evidence.value,
        "MB": round(artifact.size_bytes / 1e6, 2),
    }


def main() -> None:
    """Measure, print, and write the results of this kind of CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18", "bert_base"])
    parser.add_argument("--turns", type=int, default=6)
    arguments = parser.parse_args()
    if emulator():  # PyTorch's oneDNN is wrong there in places, and right on a Haswell
        torch.backends.mkldnn.enabled = False
    rows = [row for name in arguments.models for row in rows_of(name, arguments.turns)]
    kind = "with" if this_host().has("vnni") else "without"
    masked = "CPUID answers without VNNI and AVX-512 (cpuid_mask.c): AVX2 kernels on silicon that has more"
    notes = [
        "one thread, batch 1, in turns; minima" if not emulator() else "",
        masked if "mask" in os.environ.get("LD_PRELOAD", "") else "",
    ]
    report(f"every_cpu_{kind}_vnni", rows, notes=[note for note in notes if note])


if __name__ == "__main__":
    main()
