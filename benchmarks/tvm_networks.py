"""Whole networks: deploykit's TVM kernels against ONNX Runtime, OpenVINO, LiteRT and eager PyTorch on this machine.

    python benchmarks/tvm_networks.py [--models ...] [--turns 8] [--folder DIR] [--tvm-python PATH] [--avx2]
                                       [--threads 1 2]

TVM's libraries need no TVM to run: they are compiled by `--tvm-python`, an interpreter that has deploykit with the
extra `tvm`, and timed here, in turns with all others. `--folder` keeps what was made: a second call only measures.
One thread, by processor time, then two, by the clock. Peers that are not installed are left out.

`--avx2` has the artifacts for CPUs without VNNI (`x86-cpu-avx2`), and is run on such a CPU, or on one that peers take
for it; results go to `results/tvm_networks_avx2.json`:

    python tvm_networks.py --avx2 --folder DIR --tvm-python PATH --prepare
    cc -O2 -shared -fPIC -o mask.so cpuid_mask.c -ldl && python cpuid_patch.py MASKED
    MASK_PATCHED=1 LD_PRELOAD=$PWD/mask.so PYTHONPATH=MASKED:$PYTHONPATH python tvm_networks.py --avx2 --folder DIR
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
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
from deploykit.contract.errors import DeploykitError
from deploykit_targets.tvm.processor import processor_of

DEVICES = Path(deploykit_targets.tvm.__file__).with_name("devices.toml")
Run = Callable[[], Any]
RECURRENT = ("lstm", "gru")
MODELS = ("resnet18", "resnet50", "mobilenet_v2", "bert_encoder", "vit_small", *RECURRENT)
PRECISIONS = ("int8", "bf16", "fp32")
LABELS = {"tvm": "deploykit TVM", "": "deploykit ONNX Runtime", "openvino": "deploykit OpenVINO"}
PACKAGES = {"": ("onnxruntime",), "openvino": ("openvino",), "litert": ("ai_edge_litert", "litert_torch")}
LITERT = "litert"
OWN, RIVALS = "deploykit TVM", ("deploykit ONNX Runtime", "ORT quantize_static", "ORT quantize_dynamic", "ORT")


def targets(avx2: bool) -> dict[str, str]:
    """Toolchain to target; "" is that of ONNX Runtime."""
    device = "x86-cpu-avx2" if avx2 else "x86-cpu"
    return {kind: f"{device}:{kind}".rstrip(":") for kind in LABELS} | {LITERT: LITERT}


def export(name: str, target: str, folder: Path) -> None:
    """All precisions of a model that a target has, and the seconds of each; what exists is kept."""
    model, example = getattr(models, name)()
    for precision in PRECISIONS:
        path = _artifact(folder, name, target, precision)
        if path.exists() or (precision == "bf16" and target != "x86-cpu:tvm"):
            continue
        began = time.perf_counter()
        deploykit.export(
            model,
            target=target,
            precision=precision,
            example_inputs=example,
            calibration=calibration(name) if precision == "int8" else None,
            profile=False,
            strict=False,
            progress=False,
            output=path,
        )
        seconds = {"seconds": round(time.perf_counter() - began, 1)}
        path.with_suffix(".json").write_text(json.dumps(seconds), encoding="utf-8")


def calibration(name: str) -> list[torch.Tensor]:
    """Eight inputs of a model."""
    if name in RECURRENT:
        return models.sequences(8)
    return models.hidden_states(8) if name == "bert_encoder" else [image[None] for image in models.images(8)]


def _artifact(folder: Path, name: str, target: str, precision: str) -> Path:
    return folder / f"{name}-{target.replace(':', '-')}-{precision}"


def prepare(name: str, folder: Path, tvm_python: str, avx2: bool) -> None:
    """All files of a model; those of TVM in an interpreter of their own."""
    wanted = targets(avx2)
    command = [tvm_python, __file__, "--folder", str(folder), "--models", name, "--export", wanted["tvm"]]
    subprocess.run(command, check=True)
    for kind, packages in PACKAGES.items():
        if not all(importlib.util.find_spec(package) for package in packages):
            continue
        try:
            export(name, wanted[kind], folder)
        except DeploykitError as error:  # what a peer cannot convert is left out
            print(f"{name} for {wanted[kind]}: {error}", file=sys.stderr)
    source, static = folder / f"{name}.onnx", folder / f"{name}-static.onnx"
    if not static.exists():
        model, example = getattr(models, name)()
        peers.torch_onnx(model, example, ["x"], source, dynamo=name not in RECURRENT)
        if name in RECURRENT:  # ONNX Runtime has recurrent layers in int8 of this kind alone
            peers.ort_dynamic(source, static)
        else:
            peers.ort_static(source, static, [{"x": sample.numpy()} for sample in calibration(name)])


@contextmanager
def opened(name: str, precision: str, folder: Path, threads: int, avx2: bool) -> Iterator[dict[str, Run]]:
    """Every runtime with its model loaded, by name."""
    model, example = getattr(models, name)()
    x, made, sessions = example[0].numpy(), dict[str, Run](), []
    for kind, target in targets(avx2).items():
        path, label = _artifact(folder, name, target, precision), LABELS.get(kind, "deploykit LiteRT")
        if path.exists() and not (label == RIVALS[0] and precision == "fp32"):  # there it is ORT on the same graph
            session = deploykit.load(path).open(threads=threads)
            sessions.append(session)
            feeds = {session.inputs[0].name: x}
            made[label] = lambda s=session, f=feeds: s.run(f)  # type: ignore[misc]
    if precision == "bf16":
        if importlib.util.find_spec("openvino"):
            openvino = peers.openvino_runner(folder / f"{name}.onnx", threads, "bf16")
            made["deploykit OpenVINO"] = lambda: openvino({"x": x})
    else:
        file = folder / (f"{name}-static.onnx" if precision == "int8" else f"{name}.onnx")
        ort = peers.ort_runner(file, threads)
        quantizer = "ORT quantize_dynamic" if name in RECURRENT else "ORT quantize_static"
        made[quantizer if precision == "int8" else "ORT"] = lambda: ort({"x": x})
    if precision == "fp32":
        torch.set_num_threads(threads)
        made["torch eager"] = lambda: _eager(model, example)
    yield made
    for session in sessions:
        session.close()


def _eager(model: torch.nn.Module, example: Sequence[torch.Tensor]) -> Any:
    with torch.inference_mode():
        return model(*example)


def measure(name: str, folder: Path, turns: int, avx2: bool, counts: Sequence[int]) -> list[dict[str, Any]]:
    """One row per precision and count of threads; milliseconds are minima, ratios are between minima."""
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        own = _artifact(folder, name, targets(avx2)["tvm"], precision)
        if not own.exists():
            continue
        made = json.loads(own.with_suffix(".json").read_text())
        for threads in counts:
            clock = time.thread_time if threads == 1 else time.perf_counter
            with opened(name, precision, folder, threads, avx2) as functions:
                times = interleaved_ms(functions, turns, clock=clock)
            best = {label: min(found) for label, found in times.items()}
            rival = min((best[label] for label in RIVALS if label in best), default=None)
            row: dict[str, Any] = {"model": name, "precision": precision, "threads": threads}
            row |= {"TVM ms": round(best[OWN], 2), "TVM median ms": round(float(np.median(times[OWN])), 2)}
            others = {"ORT": rival} | {column: best.get(f"deploykit {column}") for column in ("OpenVINO", "LiteRT")}
            for column, other in others.items():
                row |= {f"{column} ms": other and round(other, 2), f"x {column}": other and round(best[OWN] / other, 3)}
            row["torch eager ms"] = round(best["torch eager"], 2) if "torch eager" in best else None
            rows.append(row | {"export s": made["seconds"]})
    return rows


def gains(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How much faster each precision is than float32, per model and count of threads, and two threads than one."""
    ms = {(row["model"], row["threads"], row["precision"]): row["TVM ms"] for row in rows}
    pairs = {(name, threads) for name, threads, _ in ms}
    found = []
    for name, threads in sorted(pairs):
        faster = {p: ms[name, threads, "fp32"] / ms[name, threads, p] for p in PRECISIONS if (name, threads, p) in ms}
        times = ", ".join(
            f"fp32 / {precision} {ratio:.2f}" for precision, ratio in faster.items() if precision != "fp32"
        )
        found.append(f"{name}, {threads} thread(s): {times}")
    for name in sorted({name for name, threads in pairs if threads == 2 and (name, 1) in pairs}):
        had = [precision for precision in PRECISIONS if (name, 1, precision) in ms]
        one, two = ([ms[name, threads, precision] for precision in had] for threads in (1, 2))
        ratios = ", ".join(f"{p} {a / b:.2f}" for p, a, b in zip(had, one, two, strict=True))
        found.append(f"{name}: one thread / two {ratios}")
    return found


def main() -> None:
    """Make, measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tvm-python", default=sys.executable)
    parser.add_argument("--export", help="only export the models for this target")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--avx2", action="store_true", help="artifacts for CPUs with AVX2 and without VNNI")
    arguments = parser.parse_args()
    if arguments.export:
        for name in arguments.models:
            export(name, arguments.export, arguments.folder)
        return
    with scratch() as temporary:
        folder = arguments.folder or temporary
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.models:
            prepare(name, folder, arguments.tvm_python, arguments.avx2)
        if arguments.prepare:
            return
        choices = (arguments.turns, arguments.avx2, arguments.threads)
        rows = [row for name in arguments.models for row in measure(name, folder, *choices)]
    device = "x86-cpu-avx2" if arguments.avx2 else "x86-cpu"
    notes = [
        f"instruction set of the kernels: {processor_of(load_devices(DEVICES, toolchain='tvm')[device]).isa}",
        "batch 1, images of 224 x 224, 128 tokens, sequences of 32, seeded random weights; minima of calls in"
        " turns in one process: processor time on one thread, time on two",
        "ORT of int8: the faster of deploykit's own QDQ artifact and quantize_static, of recurrent layers"
        " quantize_dynamic; of float32: the exported graph",
        "bf16: OpenVINO runs the exported graph with INFERENCE_PRECISION_HINT=bf16; ONNX Runtime has no kernels for it",
        "LiteRT: deploykit's own artifact, which XNNPACK runs; export: the whole of deploykit.export for TVM",
    ]
    if os.environ.get("MASK_PATCHED"):
        notes.append("peers were shown a CPU without VNNI and AVX-512 (cpuid_patch.py), and run at this one's speed")
    report("tvm_networks_avx2" if arguments.avx2 else "tvm_networks", rows, notes=notes + gains(rows))


if __name__ == "__main__":
    main()
