"""LiteRT: int8 accuracy and conversion time against the plain routes of litert-torch (PT2E) and ai-edge-quantizer.

    python benchmarks/litert.py [--models digits_mobilenet digits_resnet mobilenet_v2 resnet18]

All routes see the same calibration samples; their files are run by the same interpreter on the same other samples.
Conversion time is that of a further precision: the model is captured and calibrated already.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import digits
import models
import numpy as np
import torch
from harness import quiet, report, scratch, threads

from deploykit.capture import capture
from deploykit.parity import OutputComparison
from deploykit.precision import Precision
from deploykit.registry import resolve
from deploykit.target import ConversionJob
from deploykit_calibration.observe import calibrate
from deploykit_targets.litert.session import open_interpreter

MODELS = ("digits_mobilenet", "digits_resnet", "mobilenet_v2", "resnet18")
SIZE = 96
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


def own(job: ConversionJob) -> Path:
    """Place, export, convert in the child process, count."""
    conversion = resolve("litert").target.convert(job)
    return job.folder / conversion.entry


def plain_float(model: torch.nn.Module, x: torch.Tensor, path: Path) -> Path:
    """litert-torch's own conversion, in this process and already imported."""
    import litert_torch

    litert_torch.convert(model, (x,)).export(str(path))
    return path


def plain_pt2e(model: torch.nn.Module, calibration: Samples, path: Path) -> Path:
    """PT2E with litert-torch's quantizer, as its guide has it."""
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, (calibration[0],)).module(), quantizer)
    for x in calibration:
        prepared(x)
    converted = convert_pt2e(prepared, fold_quantize=False)
    litert_torch.convert(converted, (calibration[0],), quant_config=QuantConfig(pt2e_quantizer=quantizer)).export(
        str(path)
    )
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


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds."""
    start = time.perf_counter()
    result = function()
    return result, round(time.perf_counter() - start, 2)


def row(name: str) -> dict[str, Any]:
    """All routes for one model."""
    model, calibration, test = case(name)
    model.eval()
    found = resolve("litert")
    with quiet(), scratch() as folder:
        captured = capture(model, example_inputs=(calibration[0],))
        table = calibrate(captured, [(x,) for x in calibration], progress=False)
        (folder / "own").mkdir()
        options = found.target.parse_options(None)
        job = ConversionJob(captured, Precision.INT8, found.device, folder / "own", table=table, options=options)
        ours, own_s = timed(lambda: own(job))
        plain, float_s = timed(lambda: plain_float(model, calibration[0], folder / "float.tflite"))
        pt2e, pt2e_s = timed(lambda: plain_pt2e(model, calibration, folder / "pt2e.tflite"))
        static, _ = timed(lambda: plain_static(plain, calibration, folder / "static.tflite"))
        quality = {key: sqnr_db(path, model, test) for key, path in (("own", ours), ("pt2e", pt2e), ("static", static))}
    return {
        "model": name,
        **{f"{key}_db": value for key, value in quality.items()},
        "own_convert_s": own_s,
        "float_convert_s": float_s,
        "pt2e_with_calibration_s": pt2e_s,
    }


def main() -> None:
    """Measure, print, and write results/litert.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    chosen = parser.parse_args().models
    threads()
    import litert_torch  # noqa: F401 - the peers' import is not timed

    notes = [
        "own_convert_s includes a child process that imports PyTorch and litert-torch; the others run in this one",
    ]
    report("litert", [row(name) for name in chosen], notes=notes)


if __name__ == "__main__":
    main()
