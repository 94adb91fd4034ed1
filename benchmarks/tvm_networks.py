"""Whole networks: deploykit's TVM kernels against ONNX Runtime, OpenVINO, LiteRT and eager PyTorch on this machine.

    python benchmarks/tvm_networks.py [--models ...] [--turns 8] [--folder DIR] [--tvm-python PATH]

TVM's libraries need no TVM to run: they are compiled by `--tvm-python`, an interpreter that has deploykit with the
extra `tvm`, and timed here, in turns with all others. `--folder` keeps what was made: a second call only measures.
One thread, then two. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import numpy as np
import peers
import torch
from harness import interleaved_ms, report, scratch

import deploykit
import deploykit_targets.tvm
from deploykit.contract.devices import load_devices
from deploykit_targets.tvm.processor import processor_of

DEVICES = Path(deploykit_targets.tvm.__file__).with_name("devices.toml")
Run = Callable[[], Any]
MODELS = ("resnet18", "resnet50", "mobilenet_v2")
PRECISIONS = ("int8", "fp32")
TARGETS = {"x86-cpu:tvm": "deploykit TVM", "x86-cpu": "deploykit ONNX Runtime"}
TARGETS |= {"x86-cpu:openvino": "deploykit OpenVINO", "litert": "deploykit LiteRT"}
PEERS = {"x86-cpu": ("onnxruntime",), "x86-cpu:openvino": ("openvino",), "litert": ("ai_edge_litert", "litert_torch")}
OWN, RIVALS = "deploykit TVM", ("deploykit ONNX Runtime", "ORT quantize_static", "ORT")


def export(name: str, target: str, folder: Path) -> None:
    """Both precisions of a model for one target, and the seconds of each; what exists is kept."""
    model, example = getattr(models, name)()
    for precision in PRECISIONS:
        path = _artifact(folder, name, target, precision)
        if path.exists():
            continue
        began = time.perf_counter()
        deploykit.export(
            model,
            target=target,
            precision=precision,
            example_inputs=example,
            calibration=[image[None] for image in models.images(8)] if precision == "int8" else None,
            profile=False,
            strict=False,
            progress=False,
            output=path,
        )
        seconds = {"seconds": round(time.perf_counter() - began, 1)}
        path.with_suffix(".json").write_text(json.dumps(seconds), encoding="utf-8")


def _artifact(folder: Path, name: str, target: str, precision: str) -> Path:
    return folder / f"{name}-{target.replace(':', '-')}-{precision}"


def prepare(name: str, folder: Path, tvm_python: str) -> None:
    """All files of a model; those of TVM in an interpreter of their own."""
    command = [tvm_python, __file__, "--folder", str(folder), "--models", name, "--export", "x86-cpu:tvm"]
    subprocess.run(command, check=True)
    for target, packages in PEERS.items():
        if all(importlib.util.find_spec(package) for package in packages):
            export(name, target, folder)
    source, static = folder / f"{name}.onnx", folder / f"{name}-static.onnx"
    if not static.exists():
        model, example = getattr(models, name)()
        peers.torch_onnx(model, example, ["x"], source)
        peers.ort_static(source, static, [{"x": image[None].numpy()} for image in models.images(8)])


@contextmanager
def opened(name: str, precision: str, folder: Path, threads: int) -> Iterator[dict[str, Run]]:
    """Every runtime with its model loaded, by name."""
    model, example = getattr(models, name)()
    x, made, sessions = example[0].numpy(), dict[str, Run](), []
    for target, label in TARGETS.items():
        path = _artifact(folder, name, target, precision)
        if path.exists() and not (label == RIVALS[0] and precision == "fp32"):  # there it is ORT on the same graph
            session = deploykit.load(path).open(threads=threads)
            sessions.append(session)
            feeds = {session.inputs[0].name: x}
            made[label] = lambda s=session, f=feeds: s.run(f)  # type: ignore[misc]
    file = folder / (f"{name}-static.onnx" if precision == "int8" else f"{name}.onnx")
    ort = peers.ort_runner(file, threads)
    made["ORT quantize_static" if precision == "int8" else "ORT"] = lambda: ort({"x": x})
    if precision == "fp32":
        torch.set_num_threads(threads)
        made["torch eager"] = lambda: _eager(model, example)
    yield made
    for session in sessions:
        session.close()


def _eager(model: torch.nn.Module, example: Sequence[torch.Tensor]) -> Any:
    with torch.inference_mode():
        return model(*example)


def measure(name: str, folder: Path, turns: int) -> list[dict[str, Any]]:
    """One row per precision and count of threads; milliseconds are minima, ratios are between minima."""
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        made = json.loads(_artifact(folder, name, "x86-cpu:tvm", precision).with_suffix(".json").read_text())
        for threads in (1, 2):
            with opened(name, precision, folder, threads) as functions:
                times = interleaved_ms(functions, turns)
            best = {label: min(found) for label, found in times.items()}
            rival = min(best[label] for label in RIVALS if label in best)
            row: dict[str, Any] = {"model": name, "precision": precision, "threads": threads}
            row |= {"TVM ms": round(best[OWN], 2), "TVM median ms": round(float(np.median(times[OWN])), 2)}
            row |= {"ORT ms": round(rival, 2), "x ORT": round(best[OWN] / rival, 3)}
            for column, target in (("OpenVINO", "x86-cpu:openvino"), ("LiteRT", "litert")):
                other = best.get(TARGETS[target])
                row |= {f"{column} ms": other and round(other, 2), f"x {column}": other and round(best[OWN] / other, 3)}
            row["torch eager ms"] = round(best["torch eager"], 2) if "torch eager" in best else None
            rows.append(row | {"export s": made["seconds"]})
    return rows


def gains(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How much faster int8 is than float32, per model and count of threads."""
    ms = {(row["model"], row["threads"], row["precision"]): row["TVM ms"] for row in rows}
    pairs = {(name, threads) for name, threads, _ in ms}
    times = {pair: ms[*pair, "fp32"] / ms[*pair, "int8"] for pair in pairs}
    return [f"{name}, {threads} thread(s): fp32 / int8 {times[name, threads]:.2f}" for name, threads in sorted(pairs)]


def main() -> None:
    """Make, measure, print, and write results/tvm_networks.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tvm-python", default=sys.executable)
    parser.add_argument("--export", help="only export the models for this target")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    arguments = parser.parse_args()
    if arguments.export:
        for name in arguments.models:
            export(name, arguments.export, arguments.folder)
        return
    with scratch() as temporary:
        folder = arguments.folder or temporary
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.models:
            prepare(name, folder, arguments.tvm_python)
        if arguments.prepare:
            return
        rows = [row for name in arguments.models for row in measure(name, folder, arguments.turns)]
    notes = [
        f"instruction set of the kernels: {processor_of(load_devices(DEVICES, toolchain='tvm')['x86-cpu']).isa}",
        "batch 1, 224 x 224, seeded random weights; milliseconds are minima of calls in turns in one process",
        "ORT of int8: the faster of deploykit's own QDQ artifact and quantize_static; of float32: the exported graph",
        "LiteRT: deploykit's own artifact, which XNNPACK runs; export: the whole of deploykit.export for TVM",
    ]
    report("tvm_networks", rows, notes=notes + gains(rows))


if __name__ == "__main__":
    main()
