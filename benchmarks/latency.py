"""Latency of int8 artifacts against ORT's own quantizers and NNCF + OpenVINO, in turns in one process.

python benchmarks/latency.py [--turns 8] [--models resnet50 mobilenet_v2 bert_base]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import peers
from harness import interleaved_ms, report, scratch, summary, threads

import deploykit

Made = dict[str, Callable[[], Any]]


def image_case(name: str, folder: Path, count: int) -> tuple[Made, Any]:
    """Artifacts and peers of a convolutional network."""
    model, example = getattr(models, name)()
    batches = [image[None] for image in models.images(8)]
    feeds = [{"x": batch.numpy()} for batch in batches]
    source = peers.torch_onnx(model, example, ["x"], folder / "float.onnx")
    static = peers.ort_static(source, folder / "static.onnx", feeds)
    nncf = peers.nncf_openvino(source, folder / "nncf.xml", feeds)
    runners = {
        "ORT float32": peers.ort_runner(source, count),
        "ORT quantize_static U8S8": peers.ort_runner(static, count),
        "NNCF + OpenVINO": peers.openvino_runner(nncf, count),
    }
    made: Made = {label: lambda run=run: run(feeds[0]) for label, run in runners.items()}  # type: ignore[misc]
    sessions = {
        f"deploykit {target}": export(model, target, example, batches, folder).open(threads=count)
        for target in ("x86-cpu", "x86-cpu:openvino")
    }
    own = {spec.name: example[0].numpy() for spec in next(iter(sessions.values())).inputs}
    made |= {label: lambda s=session: s.run(own) for label, session in sessions.items()}  # type: ignore[misc]
    return made, sessions


def bert_case(_: str, folder: Path, count: int) -> tuple[Made, Any]:
    """BERT-base at length 128; ORT's dynamic quantizer is what its users take today."""
    model, example = models.bert_base()
    batches = models.token_batches(8)
    names = ["input_ids", "attention_mask"]
    feeds = [dict(zip(names, (t.numpy() for t in batch), strict=True)) for batch in batches]
    source = peers.torch_onnx(model, example, names, folder / "float.onnx")
    runners = {
        "ORT float32": peers.ort_runner(source, count),
        "ORT quantize_dynamic": peers.ort_runner(peers.ort_dynamic(source, folder / "dynamic.onnx"), count),
        "NNCF + OpenVINO": peers.openvino_runner(
            peers.nncf_openvino(source, folder / "nncf.xml", feeds, transformer=True), count
        ),
    }
    made: Made = {label: lambda run=run: run(feeds[0]) for label, run in runners.items()}  # type: ignore[misc]
    sessions = {
        f"deploykit {target}": export(model, target, example, batches, folder).open(threads=count)
        for target in ("x86-cpu", "x86-cpu:openvino")
    }
    order = [spec.name for spec in next(iter(sessions.values())).inputs]
    own = {name: tensor.numpy() for name, tensor in zip(order, example, strict=True)}
    made |= {label: lambda s=session: s.run(own) for label, session in sessions.items()}  # type: ignore[misc]
    return made, sessions


def export(model: Any, target: str, example: Any, batches: Any, folder: Path) -> deploykit.Artifact:
    """An int8 artifact, gates reported and not enforced."""
    return deploykit.export(
        model,
        target=target,
        precision="int8",
        example_inputs=example,
        calibration=batches,
        profile=False,
        strict=False,
        progress=False,
        output=folder / target.replace(":", "-"),
    )


def main() -> None:
    """Measure, print, and write results/latency.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v2", "bert_base"])
    arguments = parser.parse_args()
    count = threads()
    rows = []
    for name in arguments.models:
        with scratch() as folder:
            case = bert_case if name.startswith("bert") else image_case
            made, _ = case(name, folder, count)
            times = interleaved_ms(made, arguments.turns)
        peers_best = min(
            min(t) for label, t in times.items() if not label.startswith("deploykit") and "float" not in label
        )
        for label, own in times.items():
            ratio = round(min(own) / peers_best, 3)
            rows.append({"model": name, "what": label, **summary(own), "x best int8 peer": ratio})
    report("latency", rows, notes=[f"{count} threads, batch 1; ratios between minima of interleaved runs"])


if __name__ == "__main__":
    main()
