"""Sensitivity: the SQNR that is predicted of models with k layers in float, against what is simulated of them.

    python benchmarks/sensitivity.py [--networks mobilenet_v2 vit efficientnet_b0 bert] [--targets x86-cpu jetson-orin]

Random weights; 32 samples that calibration saw, and as many fresh ones: of 8 images the SQNR of one and the same
network differs by up to 4 dB, because most of the noise of a random network is one number an image.
`efficientnet_b0_chaotic` has residual branches as strong as what they are added to; it is no default, because the
gains on the two sets of samples differ by up to 5 dB: there is no figure that could be predicted. Beside the prediction
by roundings stand the same scores summed by layer, without planning again, and what the k layers of steepest plain
gradient gain when they are kept. Seconds are of one thread of this process: contention does not count.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import models
import numpy as np
import torch
from harness import quiet, report
from quality import bert_case
from torch import Tensor

from deploykit import pipeline
from deploykit.judge.parity import OutputComparison
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.sensitivity import Candidate, Sensitivity, meet, sensitivity

COUNTS = (1, 2, 4, 8)
SAMPLES = 32
Feeds = Sequence[Mapping[str, Tensor]]
Made = tuple[Any, list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]


def of_images(example: models.Example) -> Made:
    """A network on seeded images."""
    return example[0], *([(image[None],) for image in models.images(SAMPLES, seed=seed)] for seed in (0, 9))


def vit() -> Made:
    """ViT of 6 layers of width 192, images of 64, a thousand classes: of two, the noise is a matter of luck."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    model = models.ImageLogits(ViTForImageClassification(ViTConfig(image_size=64, num_labels=1000, **sizes)).eval())
    return model, *([(image[None],) for image in models.images(SAMPLES, 64, seed=seed)] for seed in (0, 9))


def bert() -> Made:
    """BERT of 4 layers of width 256 on texts of 64 tokens."""
    return bert_case().model, models.token_batches(SAMPLES, 64), models.token_batches(SAMPLES, 64, seed=9)


NETWORKS: dict[str, Callable[[], Made]] = {
    "mobilenet_v2": lambda: of_images(models.mobilenet_v2()),
    "vit": vit,
    "efficientnet_b0": lambda: of_images(models.efficientnet_b0(settled=True)),
    "bert": bert,
}
CHAOTIC = {"efficientnet_b0_chaotic": lambda: of_images(models.efficientnet_b0())}


def sqnr(prepared: Prepared, samples: Feeds) -> float:
    """Of the simulated graph, of the worst output."""
    assert prepared.simulation is not None
    outputs = {spec.name: OutputComparison(spec.name) for spec in prepared.captured.outputs}
    for feeds in samples:
        want = prepared.captured.run(feeds)
        got = prepared.simulation.run({name: tensor.numpy() for name, tensor in feeds.items()})
        for name, comparison in outputs.items():
            comparison.add(want[name].numpy(), got[name])
    figures = [comparison.metrics.sqnr_db for comparison in outputs.values()]
    return min(figure for figure in figures if figure is not None)


def rows_of(name: str, made: Made, target: str) -> Iterator[dict[str, Any]]:
    """One row for each number of kept layers."""
    model, calibration, fresh = made
    with quiet():
        captured = pipeline.capture(model, example_inputs=calibration[0])
        run = pipeline.calibrate(captured, calibration, progress=False)
        prepared = pipeline.prepare(pipeline.request(target, "int8"), captured, run)
    names = [spec.name for spec in captured.inputs]
    seen, unseen = ([dict(zip(names, sample, strict=True)) for sample in part] for part in (calibration, fresh))
    base = [sqnr(prepared, part) for part in (seen, unseen)]
    found, scoring = timed(lambda: sensitivity(prepared, seen))
    front, planning = timed(found.front)
    met = evaluations(prepared, seen, front, base[0] + 3.0)
    steepest = sorted(found.layers, key=lambda layer: -layer.gradient)
    for count in COUNTS:
        candidate = found.keep(count)
        kept = candidate.applied(prepared)
        gains = [sqnr(kept, part) - before for part, before in zip((seen, unseen), base, strict=True)]
        plain = found.predict([layer.name for layer in steepest[: len(candidate.kept)]]).applied(prepared)
        yield {
            "network": name,
            "target": target,
            "int8 dB": round(base[0], 1),
            "kept": len(candidate.kept),
            "predicted dB": round(candidate.gain_db, 2),
            "simulated dB": round(gains[0], 2),
            "fresh dB": round(gains[1], 2),
            "by layer dB": round(by_layer(found, candidate), 2),
            "steepest gradient dB": round(sqnr(plain, seen) - base[0], 2),
            "int8 MACs": round(candidate.quantized_share, 3),
            "scoring s": round(scoring, 1),
            "front s": round(planning, 2),
            "candidates": len(front),
            "evaluations to +3 dB": met,
        }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the seconds of CPU that it took."""
    began = time.process_time()
    return work(), time.process_time() - began


def by_layer(found: Sensitivity, candidate: Candidate) -> float:
    """What the scores of the kept layers say, summed without planning: 20 dB where nothing would be left."""
    alone = {layer.name: layer.alone for layer in found.layers}
    return -10.0 * math.log10(max(1.0 - sum(alone[name] for name in candidate.kept), 0.01))


def evaluations(prepared: Prepared, samples: Feeds, front: Sequence[Candidate], goal: float) -> str:
    """How many models are simulated to find the cheapest that reaches a goal."""
    met = meet(front, lambda each: sqnr(each.applied(prepared), samples), goal, predicted=lambda each: each.sqnr_db)
    share = f"{met.best.quantized_share:.1%}"
    return f"{len(met.tried)}, {share} int8" if met.meets else f"{len(met.tried)}, missed"


def apart(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far predictions are from what was simulated."""
    seen, fresh = ([abs(row["predicted dB"] - row[name]) for row in rows] for name in ("simulated dB", "fresh dB"))
    return (
        f"{np.mean(seen):.2f} dB apart on average, {max(seen):.2f} dB at most;"
        f" on fresh samples {np.mean(fresh):.2f} and {max(fresh):.2f}"
    )


def main() -> None:
    """Measure, print, and write results/sensitivity.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=[*NETWORKS, *CHAOTIC])
    parser.add_argument("--targets", nargs="+", default=["x86-cpu", "jetson-orin"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.networks:
        made = {**NETWORKS, **CHAOTIC}[name]()
        for target in arguments.targets:
            rows += list(rows_of(name, made, target))
            print(*(row for row in rows[-len(COUNTS) :]), sep="\n", flush=True)
    kinds = {"": [row for row in rows if row["network"] in NETWORKS]}
    kinds |= {f"{name}: ": [row for row in rows if row["network"] == name] for name in CHAOTIC}
    report(
        "sensitivity",
        rows,
        notes=[
            *(f"{kind}predicted against simulated: {apart(part)}" for kind, part in kinds.items() if part),
            "dB are of the logits, against the float model, on the samples that calibration saw",
            "seconds are of CPU, one thread",
        ],
    )


if __name__ == "__main__":
    main()
