"""What int8 costs in accuracy: SQNR, top-1 agreement and top-1 on trained models, against ORT's and NNCF's quantizers.

    python benchmarks/quality.py [--models digits_mobilenet digits_resnet vit bert resnet18]

The digits models are trained here in seconds on scikit-learn's bundled data; the others have seeded random weights.
All see the same calibration samples and are judged on the same other samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
import models
import numpy as np
import peers
from harness import quiet, report, scratch, threads

import deploykit
from deploykit.judge.parity import OutputComparison

METHODS = ("minmax", "percentile", "mse", "entropy")


@dataclass(frozen=True)
class Case:
    """A model with data: `labels` where it was trained, calibration and test samples as tuples of tensors."""

    model: Any
    calibration: list[tuple[Any, ...]]
    test: list[tuple[Any, ...]]
    names: list[str]
    labels: np.ndarray | None = None
    transformer: bool = False


def digits_case(kind: str, *, seed: int = 0) -> Case:
    """A network trained on the digits."""
    trained = digits.trained(kind, seed=seed)
    calibration = [(row[None],) for row in trained.train_images[:128]]
    test = [(row[None],) for row in trained.test_images]
    return Case(trained.model, calibration, test, ["x"], trained.test_labels)


def image_case(name: str) -> Case:
    """A seeded convolutional network on seeded images."""
    model, _ = getattr(models, name)()
    return Case(model, [(i[None],) for i in models.images(16)], [(i[None],) for i in models.images(16, seed=9)], ["x"])


def vit_case() -> Case:
    """ViT from its configuration alone: 6 layers of width 192, images of 64."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768, image_size=64
    )
    model = models.ImageLogits(ViTForImageClassification(config).eval())
    pick: Callable[[int], list[tuple[Any, ...]]] = lambda seed: [(i[None],) for i in models.images(16, 64, seed=seed)]  # noqa: E731
    return Case(model, pick(0), pick(9), ["x"], transformer=True)


def bert_case() -> Case:
    """BERT from its configuration alone: 4 layers of width 256, length 64."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    model = models.TextLogits(BertForSequenceClassification(config).eval())
    batches, test = models.token_batches(16, 64), models.token_batches(16, 64, seed=9)
    return Case(model, batches, test, ["input_ids", "attention_mask"], transformer=True)


CASES: dict[str, Callable[[], Case]] = {
    "digits_mobilenet": lambda: digits_case("mobilenet"),
    "digits_resnet": lambda: digits_case("resnet"),
    "vit": vit_case,
    "bert": bert_case,
    "resnet18": lambda: image_case("resnet18"),
    "mobilenet_v2": lambda: image_case("mobilenet_v2"),
}


def feeds_of(case: Case, samples: list[tuple[Any, ...]], names: list[str]) -> list[dict[str, np.ndarray]]:
    """Samples as named arrays."""
    return [dict(zip(names, (t.numpy() for t in sample), strict=True)) for sample in samples]


def judge(reference: list[np.ndarray], got: list[np.ndarray], labels: np.ndarray | None) -> dict[str, Any]:
    """SQNR and agreement with the float outputs, and top-1 where there are labels."""
    comparison = OutputComparison("logits")
    for want, have in zip(reference, got, strict=True):
        comparison.add(want, have)
    metrics = comparison.metrics
    top1 = None if labels is None else float(np.mean(np.concatenate(got).argmax(1) == labels))
    return {"SQNR dB": round(metrics.sqnr_db, 2), "top-1 agreement": metrics.top1_agreement, "top-1": top1}


def run_case(name: str, case: Case, folder: Path, count: int) -> list[dict[str, Any]]:
    """All candidates on one model."""
    import torch

    with torch.inference_mode():
        reference = [case.model(*sample).numpy() for sample in case.test]
    rows = [{"model": name, "what": "float32 PyTorch", **judge(reference, reference, case.labels)}]

    def add(what: str, run: Callable[[dict[str, np.ndarray]], np.ndarray], names: list[str]) -> None:
        got = [run(feeds) for feeds in feeds_of(case, case.test, names)]
        rows.append({"model": name, "what": what, **judge(reference, got, case.labels)})

    calibration = feeds_of(case, case.calibration, case.names)
    source = peers.torch_onnx(case.model, case.calibration[0], case.names, folder / "float.onnx")
    for method in ("MinMax", "Percentile", "Entropy"):
        try:
            run = peers.ort_runner(peers.ort_static(source, folder / f"{method}.onnx", calibration, method), count)
        except Exception as error:  # a peer that fails is a result
            rows.append({"model": name, "what": f"ORT {method}: {type(error).__name__}", **judge([], [], None)})
            continue
        add(f"ORT quantize_static {method}", lambda feeds, run=run: run(feeds)[0], case.names)  # type: ignore[misc]
    nncf = peers.nncf_openvino(source, folder / "nncf.xml", calibration, transformer=case.transformer)
    run = peers.openvino_runner(nncf, count)
    add("NNCF + OpenVINO", lambda feeds: run(feeds)[0], case.names)
    with quiet():
        table = deploykit.calibrate(case.model, case.calibration, example_inputs=case.calibration[0])
    for target in ("x86-cpu", "x86-cpu:openvino"):
        for method in ("default", *METHODS) if target == "x86-cpu" else ("default",):
            artifact = deploykit.export(
                case.model,
                target=target,
                precision="int8",
                example_inputs=case.calibration[0],
                calibration=table,
                calibration_method=method,
                profile=False,
                strict=False,
                progress=False,
                output=folder / f"{target.replace(':', '-')}-{method}",
            )
            with artifact.open(threads=count) as session:
                names = [spec.name for spec in session.inputs]
                output = session.outputs[0].name
                add(f"deploykit {target} {method}", lambda feeds, s=session, o=output: s.run(feeds)[o], names)  # type: ignore[misc]
    return rows


def main() -> None:
    """Measure, print, and write results/quality.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    count = threads()
    rows = []
    for name in arguments.models:
        with scratch() as folder:
            rows += run_case(name, CASES[name](), folder, count)
    report("quality", rows, notes=["SQNR and agreement against the float PyTorch model on held-out samples"])


if __name__ == "__main__":
    main()
