"""LiteRT: int8 accuracy and conversion time against the plain routes of litert-torch (PT2E) and ai-edge-quantizer.

    python benchmarks/litert.py [--models digits_mobilenet digits_resnet mobilenet_v2 resnet18]

All routes see the same calibration samples; their files are run by the same interpreter on the same other samples.
Conversion time is that of a further precision: the model is captured and calibrated already.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import digits
import models
import numpy as np
import torch
from harness import quiet, report, scratch, threads

from deploykit.capture import CapturedModel, capture
from deploykit.contract.precision import Precision
from deploykit.judge.parity import OutputComparison
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.steps import lower, prepare
from deploykit_calibration.observe import CalibrationRun, calibrate
from deploykit_calibration.table import CalibrationTable
from deploykit_targets.litert.session import open_interpreter

MODELS = ("digits_mobilenet", "digits_resnet", "mobilenet_v2", "resnet18")
SIZE = 96
TURNS = 2
Samples = Sequence[torch.Tensor]


def case(name: str) -> tuple[torch.nn.Module, Samples, Samples]:
    """A model, calibration samples and other samples, each of batch 1."""
    if name.startswith("digits_"):
        trained = digits.trained(name.removeprefix("digits_"))
        return (
            trained.model,
            [row[None] for row in trained.train_images[:64]],
            [row[None] for row in trained.test_images[:128]],
        )
    model, _ = getattr(models, name)(SIZE)
    pick: Callable[[int], Samples] = lambda seed: [image[None] for image in models.images(16, SIZE, seed=seed)]  # noqa: E731
    return model, pick(0), pick(9)


@dataclass(frozen=True)
class Own:
    """deploykit's conversions of one captured and calibrated model: place, send to the converter's process, count."""

    captured: CapturedModel
    table: CalibrationTable
    folder: Path

    def convert(self, precision: Precision) -> Path:
        """The file in a precision."""
        folder = self.folder / precision
        folder.mkdir(exist_ok=True)
        run = CalibrationRun(self.table) if precision.is_static else None
        return folder / lower(prepare(make_request("litert", precision), self.captured, run), folder).entry


def plain_float(model: torch.nn.Module, x: torch.Tensor, path: Path) -> Path:
    """litert-torch's own conversion, in this process and already imported."""
    import litert_torch

    litert_torch.convert(model, (x,)).export(str(path))
    return path


def pt2e_graph(model: torch.nn.Module, calibration: Samples) -> tuple[Any, Any]:
    """PT2E with litert-torch's quantizer and calibration, as its guide has it: the quantized graph and its config."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, (calibration[0],)).module(), quantizer)
    for x in calibration:
        prepared(x)
    return convert_pt2e(prepared, fold_quantize=False), QuantConfig(pt2e_quantizer=quantizer)


def plain_int8(graph: torch.nn.Module, config: Any, x: torch.Tensor, path: Path) -> Path:
    """litert-torch's own conversion of a quantized graph."""
    import litert_torch

    litert_torch.convert(graph, (x,), quant_config=config).export(str(path))
    return path


def plain_static(source: Path, calibration: Samples, path: Path) -> Path:
    """ai-edge-quantizer's static recipe with its own calibration, on the float file."""
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    found = tool.calibrate({"serving_default": [{"args_0": x.numpy()} for x in calibration]}, num_threads=1)
    path.write_bytes(bytes(tool.quantize(found).quantized_model))
    return path


def sqnr_db(path: Path, model: torch.nn.Module, samples: Samples) -> float:
    """Of a file with one input and one output, against PyTorch."""
    interpreter = open_interpreter(str(path), 1, "xnnpack")
    into, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    comparison = OutputComparison("logits")
    for x in samples:
        with torch.inference_mode():
            expected = model(x).numpy()
        interpreter.set_tensor(into["index"], _quantized(x.numpy(), into))
        interpreter.invoke()
        comparison.add(expected, _restored(interpreter.get_tensor(out["index"]), out))
    return round(comparison.metrics.sqnr_db, 1)


def _quantized(array: np.ndarray, details: Any) -> np.ndarray:
    scale, zero_point = details["quantization"]
    if details["dtype"] is np.float32:
        return array
    return np.clip(np.rint(array / scale) + zero_point, -128, 127).astype(details["dtype"])


def _restored(array: np.ndarray, details: Any) -> np.ndarray:
    scale, zero_point = details["quantization"]
    return array if details["dtype"] is np.float32 else (array.astype(np.float32) - zero_point) * np.float32(scale)


def row(name: str) -> dict[str, Any]:
    """All routes for one model."""
    model, calibration, test = case(name)
    model.eval()
    with quiet(), scratch() as folder:
        captured = capture(model, example_inputs=(calibration[0],))
        own = Own(captured, calibrate(captured, [(x,) for x in calibration], progress=False), folder)
        graph, config = pt2e_graph(model, calibration)
        plain, pt2e = folder / "plain.tflite", folder / "pt2e.tflite"
        first = {"own_first_fp32_s": timed(lambda: own.convert(Precision.FP32))}
        seconds = fastest(
            {
                "litert_torch_fp32_s": lambda: plain_float(model, calibration[0], plain),
                "own_fp16_s": lambda: own.convert(Precision.FP16),
                "own_dynamic_s": lambda: own.convert(Precision.INT8_DYNAMIC),
                "litert_torch_int8_s": lambda: plain_int8(graph, config, calibration[0], pt2e),
                "own_int8_s": lambda: own.convert(Precision.INT8),
            }
        )
        static = plain_static(plain, calibration, folder / "static.tflite")
        files = {"own": own.folder / Precision.INT8 / "model.tflite", "pt2e": pt2e, "static": static}
        quality = {f"{key}_db": sqnr_db(path, model, test) for key, path in files.items()}
    return {"model": name, **quality, **first, **seconds}


def fastest(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds by name: the best of a few turns."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(TURNS):
        for name, function in functions.items():
            found[name].append(timed(function))
    return {name: min(times) for name, times in found.items()}


def timed(function: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    function()
    return round(time.perf_counter() - start, 2)


def main() -> None:
    """Measure, print, and write results/litert.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    chosen = parser.parse_args().models
    threads()
    import litert_torch  # noqa: F401 - the peers' import is not timed

    notes = [
        "SQNR of static int8 against float PyTorch: deploykit, PT2E with litert-torch, ai-edge-quantizer's static"
        " recipe with its calibration",
        f"seconds are the better of {TURNS} in turns; litert_torch_* are its own conversions in this process, already"
        " imported, of the float model and of PT2E's quantized graph (calibration not counted)",
        "own_first_fp32_s starts the converter's process, which imports PyTorch and litert-torch; later ones reuse it",
        ", ".join(f"{name} {version(name)}" for name in ("litert-torch", "ai-edge-quantizer", "ai-edge-litert")),
    ]
    report("litert", [row(name) for name in chosen], notes=notes)


if __name__ == "__main__":
    main()
