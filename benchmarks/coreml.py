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
from deploykit.contract.precision import Precision
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.steps import lower, prepare
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


def own(model: torch.nn.Module, example: tuple[Any, ...], folder: Path, precision: Precision = Precision.FP16) -> None:
    """Capture (with its parity check), convert, rewrite, count."""
    captured = capture(model, example_inputs=example)
    lower(prepare(make_request("iphone-15", precision), captured), folder)


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


def evaluated_ms(name: str) -> dict[str, float]:
    """Least milliseconds of the float16 and float32 programs in the evaluator, and of the model in eager PyTorch."""
    model, example = zoo.ZOO[name]()
    model.eval()
    with scratch() as folder:
        programs = {}
        for precision in (Precision.FP16, Precision.FP32):
            (folder / precision).mkdir()
            own(model, example, folder / precision, precision)
            programs[precision] = load(folder / precision / "model.mlpackage")
        tensors = zip((spec.name for spec in programs[precision].inputs), example, strict=True)
        feeds = {key: _narrow(tensor) for key, tensor in tensors}
        with torch.inference_mode():
            times = interleaved_ms(
                {
                    "fp16": lambda: programs[Precision.FP16].run(feeds),
                    "fp32": lambda: programs[Precision.FP32].run(feeds),
                    "eager": lambda: model(*example),
                },
                10,
            )
    return {key: summary(taken)["min_ms"] for key, taken in times.items()}


def _narrow(tensor: torch.Tensor) -> Any:
    array = tensor.numpy()
    return array.astype("int32") if array.dtype == "int64" else array


def row(name: str, plain_s: float | str) -> dict[str, Any]:
    """Conversion both ways, then the converted programs beside the model that they came from."""
    times = evaluated_ms(name)
    return {
        "model": name,
        "own_s": seconds(own, name),
        "plain_s": plain_s,
        "evaluator_fp16_ms": times["fp16"],
        "evaluator_fp32_ms": times["fp32"],
        "fp16_to_fp32": round(times["fp16"] / times["fp32"], 2),
        "eager_fp32_ms": times["eager"],
    }


def main() -> None:
    """Measure, print, and write results/coreml.json."""
    threads()
    notes = [
        "own: capture with its check, conversion, canonical package, count; plain: export, convert, save",
        "evaluator: the ML Program in PyTorch, least of 100 runs; these models are tiny, most of it is Python",
    ]
    plain_s = {name: seconds(plain, name) for name in MODELS}  # first: own teaches coremltools the LSTM of an export
    report("coreml", [row(name, plain_s[name]) for name in MODELS], notes=notes)


if __name__ == "__main__":
    main()
