"""Core ML: conversion time against plain coremltools, and the evaluator's time against eager PyTorch.

python benchmarks/coreml.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from harness import interleaved_ms, quiet, report, scratch, summary, threads

from deploykit.capture import capture
from deploykit.precision import Precision
from deploykit.registry import resolve
from deploykit.target import ConversionJob
from deploykit.testing import models as zoo
from deploykit_targets.coreml.mil_evaluator import load

MODELS = ("residual_cnn", "mobilenet_like", "transformer_encoder", "lstm_classifier")
ROUNDS = 3


def plain(model: torch.nn.Module, example: tuple[Any, ...], folder: Path) -> None:
    """What coremltools' guide does: export, convert, save."""
    import coremltools

    program = torch.export.export(model, example).run_decompositions({})
    made = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS17, skip_model_load=True)
    made.save(str(folder / "plain.mlpackage"))


def own(model: torch.nn.Module, example: tuple[Any, ...], folder: Path) -> None:
    """Capture (with its parity check), convert, rewrite, count."""
    found = resolve("iphone-15")
    options = found.target.parse_options(None)
    captured = capture(model, example_inputs=example)
    found.target.convert(ConversionJob(captured, Precision.FP16, found.device, folder, options=options))


def seconds(route: Any, name: str) -> float | str:
    """Least of a few rounds, each into a fresh folder; the error where the route refuses the model."""
    model, example = zoo.ZOO[name]()
    model.eval()
    best = float("inf")
    for _ in range(ROUNDS):
        with scratch() as folder, quiet():
            start = time.perf_counter()
            try:
                route(model, example, folder)
            except NotImplementedError as error:
                return f"refused: {error}"
            best = min(best, time.perf_counter() - start)
    return round(best, 2)


def row(name: str, plain_s: float | str) -> dict[str, Any]:
    """Conversion both ways, then the converted program beside the model it came from."""
    model, example = zoo.ZOO[name]()
    model.eval()
    own_s = seconds(own, name)
    with scratch() as folder:
        own(model, example, folder)
        program = load(folder / "model.mlpackage")
        tensors = zip((spec.name for spec in program.inputs), (tensor.numpy() for tensor in example), strict=True)
        feeds = {key: array.astype("int32") if array.dtype == "int64" else array for key, array in tensors}
        with torch.inference_mode():
            times = interleaved_ms({"fp16": lambda: program.run(feeds), "eager": lambda: model(*example)}, 10)
    evaluated, eager = (summary(times[key])["min_ms"] for key in ("fp16", "eager"))
    return {
        "model": name,
        "own_s": own_s,
        "plain_s": plain_s,
        "evaluator_fp16_ms": evaluated,
        "eager_fp32_ms": eager,
    }


def main() -> None:
    """Measure, print, and write results/coreml.json."""
    threads()
    notes = ["own: capture with its check, conversion, canonical package, count; plain: export, convert, save"]
    plain_s = {name: seconds(plain, name) for name in MODELS}  # first: own teaches coremltools the LSTM of an export
    report("coreml", [row(name, plain_s[name]) for name in MODELS], notes=notes)


if __name__ == "__main__":
    main()
