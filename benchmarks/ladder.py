"""The ladder: what each rung brings in dB, the share of multiply-accumulates that stays in int8, and seconds.

    python benchmarks/ladder.py [--networks vit swin convnext lstm llama] [--targets x86-cpu] [--min-sqnr-db 30]
                                [--large] [--nncf]

Random weights, seeded inputs: 24 samples for calibration, of which some are held out and judged. Architectures are
those of ViT, Swin, ConvNeXt, LSTM and Llama at sizes that a CPU searches in a minute (`--large` has ViT-B/16, Swin-T
and ConvNeXt-T of images of 224). `ptq` is the plain export, `artifact` the confirmation of what was kept. With `--nncf`
NNCF's accuracy control quantises the same float ONNX file to the same goal, a noise of 10^(-dB/10).
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from harness import quiet, report, scratch
from torch import Tensor, nn

import deploykit
from deploykit import pipeline

SAMPLES = 24
Made = tuple[nn.Module, list[Tensor]]
Shared = tuple[Any, Any, float]


class Logits(nn.Module):
    """The scores of a model that returns a record."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)[0]
        return found


class Recurrent(nn.Module):
    """Two LSTM layers and a classifier of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 128, 2, batch_first=True), nn.Linear(128, 100)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(x)[0][:, -1])
        return found


def images(size: int) -> list[Tensor]:
    """Seeded images, one a sample."""
    return [image[None] for image in models.images(SAMPLES, size, seed=3)]


def vit(large: bool) -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    config = ViTConfig(num_labels=1000) if large else ViTConfig(image_size=64, num_labels=1000, **small)
    return Logits(ViTForImageClassification(config)), images(config.image_size)


def swin(large: bool) -> Made:
    from transformers import SwinConfig, SwinForImageClassification

    small = {"embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4}
    config = SwinConfig(num_labels=1000) if large else SwinConfig(image_size=64, num_labels=1000, **small)
    return Logits(SwinForImageClassification(config)), images(config.image_size)


def convnext(large: bool) -> Made:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    small = {"depths": [2, 2, 4, 2], "hidden_sizes": [48, 96, 192, 384]}
    config = ConvNextConfig(num_labels=1000) if large else ConvNextConfig(image_size=64, num_labels=1000, **small)
    return Logits(ConvNextForImageClassification(config)), images(config.image_size)


def lstm(large: bool) -> Made:
    del large
    return Recurrent(), list(torch.randn(SAMPLES, 1, 24, 64, generator=torch.Generator().manual_seed(3)))


def llama(large: bool) -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8} if large else {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}  # fmt: skip
    config = LlamaConfig(vocab_size=1000, num_attention_heads=4, num_key_value_heads=2, use_cache=False, **sizes)
    generator = torch.Generator().manual_seed(3)
    return Logits(LlamaForCausalLM(config)), list(torch.randint(0, 1000, (SAMPLES, 1, 32), generator=generator))


NETWORKS: Mapping[str, Callable[[bool], Made]] = {
    "vit": vit, "swin": swin, "convnext": convnext, "lstm": lstm, "llama": llama,
}  # fmt: skip


def captured_once(made: Made) -> Shared:
    """One capture and one calibration for all targets; and the seconds of CPU that they took, which each is charged."""
    model, data = made
    began = time.process_time()
    with quiet():
        captured = pipeline.capture(model, example_inputs=(data[0],))
        run = pipeline.calibrate(captured, data, progress=False)
    return captured, run, time.process_time() - began


def climbed(name: str, shared: Shared, target: str, least: float, folder: Path) -> Iterator[dict[str, Any]]:
    """Every rung of one search; seconds are of this process's CPU for the whole, and of the clock for each rung."""
    captured, run, before = shared
    began = time.process_time()
    with quiet():
        plan = deploykit.tune(
            captured, target, "int8", calibration=run, min_sqnr_db=least, strict=False,
            output=folder / f"{name}-{target}".replace(":", "-"), profile=False, progress=False,
        )  # fmt: skip
    spent = time.process_time() - began + before
    start = plan.ladder[0].sqnr_db
    for step in plan.ladder:
        gained = None if step.sqnr_db is None or start is None else round(step.sqnr_db - start, 2)
        yield {
            "network": name,
            "target": target,
            "step": step.step,
            "outcome": step.outcome,
            "sqnr_db": None if step.sqnr_db is None else round(step.sqnr_db, 2),
            "over_start_db": gained,
            "int8_share": None if step.int8_share is None else round(step.int8_share, 4),
            "seconds": round(step.seconds, 1),
        }
    last = next(step for step in reversed(plan.ladder) if step.on == "artifact")
    met = "met" if plan.met else "missed"
    yield {
        "network": name, "target": target, "step": f"all: {least:g} dB {met}", "outcome": "", "sqnr_db": last.sqnr_db,
        "over_start_db": None, "int8_share": last.int8_share, "seconds": round(spent, 1),
    }  # fmt: skip


def integer_share(model: Any) -> float:
    """Share of the multiply-accumulates of an ONNX graph whose two operands come out of a DequantizeLinear."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.output, *graph.input)
    shapes = {each.name: [axis.dim_value or 1 for axis in each.type.tensor_type.shape.dim] for each in values}
    shapes |= {each.name: list(each.dims) for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for name, node in makers.items():  # inference leaves out those of integers that are stored
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes.setdefault(name, shapes[node.input[0]])
    total = integer = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        operands = [makers.get(name) for name in node.input[:2]]
        is_integer = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in operands)
        weight = shapes[node.input[1]]
        summed = int(np.prod(weight[1:])) if node.op_type == "Conv" else shapes[node.input[0]][-1]
        macs = int(np.prod(shapes[node.output[0]])) * summed
        total, integer = total + macs, integer + macs * is_integer
    return integer / max(total, 1)


def controlled(name: str, made: Made, least: float, folder: Path) -> dict[str, Any]:
    """NNCF's accuracy control over the float ONNX file, with the noise as the metric that may rise."""
    import nncf
    import onnx
    import onnxruntime

    model, data = made
    with quiet():
        plain = deploykit.export(
            model, "x86-cpu", "fp32", example_inputs=(data[0],), output=folder / f"{name}-float", profile=False,
            progress=False, options={"opset": 18},
        )  # fmt: skip
    graph = onnx.load(plain.entry)
    given = plain.inputs[0].name
    feeds = [{given: x.numpy()} for x in data]

    def outputs(serialised: bytes) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(serialised, providers=["CPUExecutionProvider"])
        return [session.run(None, each)[0] for each in feeds[-8:]]

    wanted = outputs(graph.SerializeToString())
    power = sum(float(np.square(x).sum()) for x in wanted)

    def quality(candidate: Any, _: Any) -> tuple[float, None]:
        noise = sum(
            float(np.square(x - y).sum()) for x, y in zip(wanted, outputs(candidate.SerializeToString()), strict=True)
        )
        return 1.0 - noise / power, None  # NNCF divides by the figure of the float model

    began = time.process_time()
    with quiet():
        found = nncf.quantize_with_accuracy_control(
            graph, nncf.Dataset(feeds[:-8]), nncf.Dataset(feeds[-8:]), quality, max_drop=10 ** (-least / 10),
            drop_type=nncf.DropType.ABSOLUTE,
        )  # fmt: skip
    spent, noise = time.process_time() - began, 1.0 - quality(found, None)[0]
    return {
        "network": name, "target": "NNCF accuracy control", "step": "all", "outcome": "",
        "sqnr_db": round(-10 * np.log10(max(noise, 1e-20)), 2), "over_start_db": None,
        "int8_share": round(integer_share(found), 4), "seconds": round(spent, 1),
    }  # fmt: skip


def _tried(name: str, made: Made, least: float, folder: Path) -> dict[str, Any]:
    """The peer's row; what it refuses is its figure."""
    try:
        return controlled(name, made, least, folder)
    except Exception as error:
        empty = dict.fromkeys(("sqnr_db", "over_start_db", "int8_share", "seconds"))
        reason = f"{type(error).__name__}: {str(error)[:120]}"
        return {"network": name, "target": "NNCF accuracy control", "step": "all", "outcome": reason, **empty}


def _keep(rows: list[dict[str, Any]], *, shown: bool = False) -> None:
    """Write what is there already: a run that is cut keeps its rows."""
    with contextlib.nullcontext() if shown else quiet():
        report("ladder", rows, notes=["random weights; dB on samples that calibration did not see"])


def main() -> None:
    """Search for each network on each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--targets", nargs="*", default=["x86-cpu"])
    parser.add_argument("--min-sqnr-db", type=float, default=30.0)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--nncf", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with scratch() as folder:
        for name in arguments.networks:
            torch.manual_seed(0)
            model, data = NETWORKS[name](arguments.large)
            made = model.eval(), data
            shared = captured_once(made)
            for target in arguments.targets:
                rows += climbed(name, shared, target, arguments.min_sqnr_db, folder)
                print(f"{name} {target}: {rows[-1]}", flush=True)
                _keep(rows)
            if arguments.nncf:
                rows.append(_tried(name, made, arguments.min_sqnr_db, folder))
                print(f"{name} NNCF: {rows[-1]}", flush=True)
    _keep(rows, shown=True)


if __name__ == "__main__":
    main()
