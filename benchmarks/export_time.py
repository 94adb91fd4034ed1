"""Wall time of a whole verified export of ResNet-50 int8 (64 images) against the plain route that verifies nothing.

python benchmarks/export_time.py
"""

from __future__ import annotations

import time

import models
import peers
from harness import report, scratch, threads

import deploykit


def main() -> None:
    """Measure both routes, print, and write results/export_time.json."""
    threads()
    model, example = models.resnet50()
    batches = [image[None] for image in models.images(64)]
    rows = []
    with scratch() as folder:
        start = time.perf_counter()
        artifact = deploykit.export(
            model,
            target="x86-cpu",
            precision="int8",
            example_inputs=example,
            calibration=batches,
            strict=False,
            progress=False,
            output=folder / "own",
        )
        own = time.perf_counter() - start
        parity, profile = artifact.parity, artifact.profile
        rows.append({"what": "deploykit.export, parity and profile included", "seconds": round(own, 2)})
        start = time.perf_counter()
        source = peers.torch_onnx(model, example, ["x"], folder / "float.onnx")
        exported = time.perf_counter() - start
        peers.ort_static(source, folder / "p.onnx", ({"x": batch.numpy()} for batch in batches), "Percentile")
        plain = time.perf_counter() - start
    rows.append({"what": "torch.onnx.export", "seconds": round(exported, 2)})
    rows.append({"what": "torch.onnx.export + quantize_static Percentile", "seconds": round(plain, 2)})
    rows.append({"what": "ratio (goal <= 0.5)", "seconds": round(own / plain, 3)})
    notes = [
        f"own parity {parity.sqnr_db:.1f} dB" if parity else "",
        f"profiled {profile.runs} runs" if profile else "",
    ]
    report("export_time", rows, notes=notes)


if __name__ == "__main__":
    main()
