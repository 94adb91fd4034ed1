"""Cost of calibrating ResNet-50: a plain ORT float32 forward is the floor, ORT's and NNCF's quantizers are the peers.

Every case runs in a process of its own, so that peak memory is its own; the cases take turns for some rounds, and the
least disturbed round of each counts. All read the same images from disk, one at a time, so that none holds them all.

python benchmarks/calibration.py [--images 128] [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import peers
from harness import report, scratch, threads

SIDE = 224
IMAGE = (1, 3, SIDE, SIDE)
FEW = 16  # peak memory at this many images is what more images are compared with; and what ORT's percentile can afford


def stored(folder: Path, count: int) -> Iterator[np.ndarray[Any, Any]]:
    """The images, read one by one."""
    size = int(np.prod(IMAGE))
    with (folder / "images.bin").open("rb") as file:
        for _ in range(count):
            yield np.fromfile(file, np.float32, size).reshape(IMAGE)


def feeds(folder: Path, count: int) -> Iterator[peers.Feeds]:
    return ({"x": image} for image in stored(folder, count))


def ort_forward(folder: Path, count: int) -> None:
    """What calibration cannot be cheaper than with ORT: every image once through the float model."""
    run = peers.ort_runner(folder / "float.onnx", threads())
    for batch in feeds(folder, count):
        run(batch)


def ort_minmax(folder: Path, count: int) -> None:
    peers.ort_static(folder / "float.onnx", folder / "minmax.onnx", feeds(folder, count), "MinMax")


def ort_percentile(folder: Path, count: int) -> None:
    peers.ort_static(folder / "float.onnx", folder / "percentile.onnx", feeds(folder, count), "Percentile")


def nncf_openvino(folder: Path, count: int) -> None:
    peers.nncf_openvino(folder / "float.onnx", folder / "nncf.xml", list(feeds(folder, count)))


def deploykit_static(folder: Path, count: int) -> dict[str, float]:
    return deploykit_pass(folder, count, dynamic=False)


def deploykit_dynamic(folder: Path, count: int) -> dict[str, float]:
    return deploykit_pass(folder, count, dynamic=True)


def deploykit_pass(folder: Path, count: int, *, dynamic: bool) -> dict[str, float]:
    """Capture and the pass with histograms, timed apart; the peers start from an ONNX file made before."""
    from deploykit.capture import capture
    from deploykit_calibration.observe import calibrate

    model, example = models.resnet50()
    start = time.perf_counter()
    captured = capture(model, example_inputs=example, dynamic_batch=dynamic)
    captured_at, cpu = time.perf_counter(), time.process_time()
    calibrate(captured, stored(folder, count), progress=False)
    return {
        "capture_s": captured_at - start,
        "s": time.perf_counter() - captured_at,
        "cpu_s": time.process_time() - cpu,
    }


CASES: dict[str, Callable[[Path, int], dict[str, float] | None]] = {
    "ORT float32 forward": ort_forward,
    "deploykit, static batch 1": deploykit_static,
    "deploykit, dynamic batch": deploykit_dynamic,
    "ORT quantize_static MinMax": ort_minmax,
    "ORT quantize_static Percentile": ort_percentile,
    "NNCF + OpenVINO": nncf_openvino,
}


def run_here(case: str, folder: Path, count: int) -> None:
    """The child: runs one case and prints its figures."""
    threads()
    start, cpu = time.perf_counter(), time.process_time()
    figures = {"capture_s": 0.0}
    own = CASES[case](folder, count)
    figures |= {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    figures |= own or {}
    figures["peak_mb"] = peak_mb()
    print(json.dumps(figures))


def peak_mb() -> float:
    """Peak resident memory of this process. `getrusage` would count the parent's at the fork too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def run_child(case: str, folder: Path, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--folder", str(folder), "--images", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepare(folder: Path, count: int) -> None:
    """The float ONNX model and the images, made before anything is timed."""
    model, example = models.resnet50()
    peers.torch_onnx(model, example, ["x"], folder / "float.onnx")
    with (folder / "images.bin").open("wb") as file:
        for index in range(count):
            models.images(1, SIDE, seed=1000 + index).numpy().tofile(file)


def jobs(count: int) -> list[tuple[str, int]]:
    """(case, images): everything at full size but ORT's percentile, whose memory grows by 112 MB per image."""
    full = [(case, count) for case in CASES if "Percentile" not in case]
    few = [
        (case, min(FEW, count)) for case in CASES if "Percentile" in case or "deploykit" in case or "forward" in case
    ]
    return full + [job for job in few if job not in full]


def rows_of(best: dict[tuple[str, int], dict[str, float]]) -> list[dict[str, Any]]:
    rows = []
    for (case, count), figures in best.items():
        floor = best["ORT float32 forward", count]["s"]
        rows.append(
            {
                "case": case,
                "images": count,
                "s": round(figures["s"], 2),
                "ratio to ORT forward": round(figures["s"] / floor, 2),
                "capture_s": round(figures["capture_s"], 2),
                "ms per image": round(figures["s"] / count * 1e3, 1),
                "cpu_s": round(figures["cpu_s"], 2),
                "peak_mb": round(figures["peak_mb"]),
            }
        )
    return rows


def main() -> None:
    """Measure, print, and write results/calibration.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 images, one round")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_here(arguments.case, arguments.folder, arguments.images)
        return
    count, rounds = (FEW, 1) if arguments.quick else (arguments.images, arguments.rounds)
    best: dict[tuple[str, int], dict[str, float]] = {}
    with scratch() as folder:
        prepare(folder, count)
        for _ in range(rounds):
            for job in jobs(count):
                figures = run_child(job[0], folder, job[1])
                best[job] = min(best.get(job, figures), figures, key=lambda found: found["s"])
    notes = [
        "seconds: deploykit the pass alone, capture beside it; the plain forward loading and running; "
        "the others the whole call, quantized weights and file included",
        "peak memory is of the process, with imports and model",
    ]
    report("calibration-quick" if arguments.quick else "calibration", rows_of(best), notes=notes)


if __name__ == "__main__":
    main()
