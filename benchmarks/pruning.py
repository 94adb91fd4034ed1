"""What pruning half of the channels buys and costs: latency and size of ResNet-18, accuracy of trained networks.

    python benchmarks/pruning.py [--parts latency accuracy] [--seeds 3] [--steps 100] [--seconds 20]

Latency is of four artifacts run in turns in one process: float32 and int8, before and after. Accuracy is on 597
held-out digits, after `--steps` steps of distillation with the network from before as the teacher; the steps see
training digits alone. `file_ratio` is the float32 file from before over the int8 file from after.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import models
import torch
from harness import interleaved_ms, quiet, report, scratch, summary, threads
from torch import Tensor, nn

import deploykit

RATIO = 0.5
BATCH = 50


def sizes_and_latency(seconds: float) -> Iterator[dict[str, Any]]:
    """ResNet-18 at 224: one row for each precision."""
    model, inputs = models.resnet18()
    data = models.images(16)
    report_of = deploykit.prune(model, inputs, RATIO, target="x86-cpu", inplace=False)
    print(report_of, flush=True)
    pruned = report_of.model
    with scratch() as folder:
        made = {
            (name, precision): _export(one, precision, inputs, data, folder / f"{name}-{precision}")
            for name, one in (("before", model), ("after", pruned))
            for precision in ("fp32", "int8")
        }
        sessions = {key: artifact.open() for key, artifact in made.items()}
        feeds = {session.inputs[0].name: inputs[0].numpy() for session in sessions.values()}
        calls = {f"{n} {p}": (lambda s=session: s.run(feeds)) for (n, p), session in sessions.items()}
        with quiet():
            times = interleaved_ms(calls, turns=max(int(seconds), 3))
        for precision in ("fp32", "int8"):
            before, after = (summary(times[f"{name} {precision}"]) for name in ("before", "after"))
            yield {
                "model": "resnet18",
                "precision": precision,
                "before_ms": before["min_ms"],
                "after_ms": after["min_ms"],
                "speedup": round(before["min_ms"] / after["min_ms"], 2),
                "before_mb": round(made["before", precision].size_bytes / 1e6, 2),
                "after_mb": round(made["after", precision].size_bytes / 1e6, 2),
                "file_ratio": round(made["before", "fp32"].size_bytes / made["after", precision].size_bytes, 1),
            }


def _export(model: Any, precision: str, inputs: Any, data: Tensor, output: Path) -> deploykit.Artifact:
    return deploykit.export(
        model,
        "x86-cpu",
        precision,
        example_inputs=inputs,
        calibration=[data[i : i + 1] for i in range(len(data))] if precision == "int8" else None,
        profile=False,
        strict=False,
        progress=False,
        output=output,
    )


def accuracy(kind: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained network: points of accuracy at every step."""
    trained = digits.trained(kind, seed=seed)
    model, teacher = copy.deepcopy(trained.model).requires_grad_(True), trained.model
    labels = _labels(trained, seed)
    example = trained.train_images[:1]
    result = deploykit.prune(model, (example,), RATIO, round_to=8, calibration=[trained.train_images[:256]])
    row: dict[str, Any] = {"model": f"digits_{kind}", "seed": seed, "float": _points(teacher, trained)}
    row["pruned"] = _points(model, trained)
    loss = deploykit.distill(model, teacher, deploykit.Response())
    batches = list(_batches(trained.train_images, labels, steps))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = loss.fit(batches, optimizer=optimizer, max_steps=steps, progress=False)
    row[f"after {history.steps} steps"] = _points(model, trained)
    with scratch() as folder, quiet():
        before = _export(teacher, "fp32", (example,), example, folder / "float")
        small = _export(model.eval(), "int8", (example,), trained.train_images[:64], folder / "int8")
        with small.open() as session:
            name = session.inputs[0].name
            found = [
                int(session.run({name: x[None].numpy()})[session.outputs[0].name].argmax()) for x in trained.test_images
            ]
        row["int8"] = round(100 * float((torch.tensor(found) == torch.tensor(trained.test_labels)).float().mean()), 2)
        row["file_ratio"] = round(before.size_bytes / small.size_bytes, 1)
    row["mmacs"] = f"{result.macs_before / 1e6:.1f} -> {result.macs_after / 1e6:.1f}"
    return row


def _labels(trained: digits.Trained, seed: int) -> Tensor:
    """Of the training digits, in the order that `digits.trained` drew."""
    from sklearn.datasets import load_digits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(1797)
    return torch.tensor(load_digits().target)[order[:1200]]


def _batches(images: Tensor, labels: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        picked = torch.randint(len(images), (BATCH,), generator=generator)
        yield images[picked] + 0.3 * torch.randn(BATCH, *images.shape[1:], generator=generator), labels[picked]


@torch.no_grad()
def _points(model: nn.Module, trained: digits.Trained) -> float:
    found = model.eval()(trained.test_images).argmax(1)
    return round(100 * float((found == torch.tensor(trained.test_labels)).float().mean()), 2)


def main() -> None:
    """Both questions; tables, `results/pruning.json` and `results/pruning_accuracy.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("latency", "accuracy"), default=["latency", "accuracy"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    threads()
    if "latency" in arguments.parts:
        report("pruning", list(sizes_and_latency(arguments.seconds)), notes=["minima of runs in turns, batch 1"])
    if "accuracy" in arguments.parts:
        rows = []
        for kind in ("resnet", "mobilenet"):
            for seed in range(arguments.seeds):
                rows.append(accuracy(kind, seed, arguments.steps))
                print(rows[-1], flush=True)
        report("pruning_accuracy", rows, notes=["% of 597 held-out digits; int8 is the artifact for x86-cpu"])


if __name__ == "__main__":
    main()
