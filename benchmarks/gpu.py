"""An AOTInductor artifact on an NVIDIA GPU against PyTorch eager and torch.compile, by CUDA events.

    python benchmarks/gpu.py [--target h200:aotinductor] [--models resnet50 bert_base] [--precisions fp32 fp16 bf16]
                             [--runtime compile]

`--runtime compile` measures artifacts that keep the program, for machines whose PyTorch cannot load native packages.

Data stays on the GPU: what is timed is the model alone, one run after the other, in turns. Needs a CUDA device and a
PyTorch with CUDA; without them it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import models
import torch
from harness import quiet, report, scratch, summary

import deploykit

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDS, WARM_UP = 100, 20


def event_times_ms(functions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Call the functions in turns; milliseconds between two CUDA events around every call, by name."""
    for function in functions.values():
        for _ in range(WARM_UP):
            function()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def resident_run(artifact: deploykit.Artifact, runtime: str) -> Callable[[list[Any]], Any]:
    """The artifact as a function of tensors on the GPU, without the copies that a session makes."""
    if runtime == "compile":
        session: Any = artifact.open()
        run: Callable[[list[Any]], Any] = session.on_device
        return run
    package = torch._inductor.aoti_load_package(str(artifact.entry))
    return lambda tensors: package(*tensors)


def run_model(name: str, target: str, precision: str, runtime: str, folder: Path) -> list[dict[str, Any]]:
    """Eager, torch.compile and the artifact on one model in one precision."""
    model, example = getattr(models, name)()
    dtype = DTYPES[precision]
    with quiet():
        artifact = deploykit.export(
            model,
            target=target,
            precision=precision,
            example_inputs=example,
            options={"runtime": runtime},
            output=folder / f"{name}-{precision}",
            profile=False,
            strict=False,
            progress=False,
        )
        run = resident_run(artifact, runtime)
    assert artifact.parity is not None
    on_gpu = [value.cuda() for value in example]
    typed = [value.to(dtype) if value.is_floating_point() else value for value in on_gpu]
    resident = model.cuda().to(dtype)
    compiled = torch.compile(resident)
    ours = f"deploykit aotinductor, {runtime}"
    with torch.inference_mode():
        times = event_times_ms(
            {
                "PyTorch eager": lambda: resident(*typed),
                "torch.compile": lambda: compiled(*typed),
                ours: lambda: run(on_gpu),
            }
        )
    best = min(times[ours])
    return [
        {
            "model": name,
            "precision": precision,
            "what": what,
            **summary(each),
            "x of ours": round(min(each) / best, 3),
            "SQNR dB": round(artifact.parity.sqnr_db, 1) if what.startswith("deploykit") else None,
        }
        for what, each in times.items()
    ]


def main() -> int:
    """All models and precisions; a table and `results/gpu.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="h200:aotinductor")
    parser.add_argument("--models", nargs="+", default=["resnet50", "bert_base"])
    parser.add_argument("--precisions", nargs="+", choices=sorted(DTYPES), default=["fp32", "fp16", "bf16"])
    parser.add_argument("--runtime", choices=("package", "compile"), default="package")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device, or a PyTorch without CUDA: nothing was measured", file=sys.stderr)
        return 10
    rows = []
    for name in arguments.models:
        for precision in arguments.precisions:
            with scratch() as folder:
                rows += run_model(name, arguments.target, precision, arguments.runtime, folder)
    device = torch.cuda.get_device_name()
    notes = [
        f"{device}, CUDA {torch.version.cuda}",
        "CUDA events around each run, in turns; inputs and outputs on the GPU",
    ]
    report("gpu", rows, notes=notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
