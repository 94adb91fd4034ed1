"""Quantisation-aware training on the target's own scheme: what it wins back, what a step costs, what the artifact is.

    python benchmarks/training.py [--parts accuracy cost artifacts] [--seeds 3] [--steps 150]

`accuracy`: MobileNet's blocks on scikit-learn's digits (32 x 32), 597 held-out images, with weights of 3 bits and one
scale per tensor (the scheme of x86-cpu, narrowed), and with 8-bit weights and one scale per tensor on a network whose
channels were scaled against each other by up to 2^8 (the float network computes the same; trained MobileNets have
channels of such different sizes, and these digits have not).
Goals: the first loses at least 10 points by calibration alone and ends within 1; the second loses at least 2 and ends
within 0.5. `cost`: CPU time of a step beside a float step and one of torchao's PT2E, in turns in one run, for the
digits MobileNet and ResNet-18 (at 64 x 64). Goals: at most 1.7 x and 1.1 x. `artifacts`: SQNR and equal
argmax of what is exported against the trained graph, on held-out images. Goals: at least 60 dB and 99.9 %; a target
whose packages are in another environment is named as missing.

Rows are written as soon as they are there, beside those of other parts of an earlier run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import digits
import models
import numpy as np
import torch
from harness import RESULTS, quiet, record
from torch import Tensor, nn

import deploykit
from deploykit.contract.errors import DeploykitError
from deploykit.contract.formats import PerTensor
from deploykit.contract.host import this_host
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.steps import calibrate
from deploykit.plugin.registry import toolchain
from deploykit_training.qat import begin
from deploykit_training.trained import Trained

TARGETS = ("x86-cpu", "x86-cpu:openvino", "android", "jetson-orin", "iphone-15", "x86-cpu:tvm")
BATCH = 64
PEER = "torchao PT2E"
PARTS = ("accuracy", "cost", "artifacts")
NOTES = ("times are processor time, of steps in turns", "parts may be of several runs on one kind of CPU")


def narrowed(limit: int) -> Any:
    """The plugin of x86-cpu with symmetric weights from -limit to limit and one scale per tensor."""
    plugin = copy.copy(toolchain(make_request("x86-cpu").toolchain))
    own = plugin.scheme

    def scheme(request: Any, captured: Any) -> Any:
        found = own(request, captured)
        weight = replace(found.weight, quant_min=-limit, quant_max=limit, granularity=PerTensor())
        return replace(found, weight=weight, float_head=0.0)

    plugin.scheme = scheme
    return plugin


def started(model: nn.Module, images: Tensor, limit: int) -> Trained:
    """The model under the narrowed scheme, with ranges of 256 training images."""
    data = [images[i : i + 32] for i in range(0, 256, 32)]
    observe = partial(calibrate, data=data, progress=False)
    shapes = {"dynamic_batch": True, "dynamic_shapes": None}
    request = make_request("x86-cpu")
    return begin(model, (images[:1],), request, observe, shapes=shapes, progress=False, plugin=narrowed(limit))


def accuracy(model: Callable[[Tensor], Tensor], found: digits.Trained) -> float:
    """Percent of the held-out images."""
    with torch.no_grad():
        return 100.0 * float((model(found.test_images).argmax(1).numpy() == found.test_labels).mean())


def fit(model: nn.Module, images: Tensor, labels: Tensor, steps: int, *, lr: float, seed: int) -> None:
    """A plain loop with a cosine schedule."""
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        picked = torch.randint(len(images), (BATCH,), generator=draws)
        loss = nn.functional.cross_entropy(model(images[picked]), labels[picked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def unbalanced(model: nn.Module, seed: int) -> nn.Module:
    """Scale channels of depthwise convolutions' batch norms against the next convolution's inputs; relu6 goes to relu.

    The network computes the same in float, since relu(s x) = s relu(x) for s > 0; with one scale per tensor the small
    channels have few steps left.
    """
    draws = torch.Generator().manual_seed(seed)
    modules = list(model.modules())
    layers = [m for m in modules if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.no_grad():
        for first, second, following in zip(layers, layers[1:], layers[2:], strict=False):
            depthwise = isinstance(first, nn.Conv2d) and first.groups > 1
            if depthwise and isinstance(second, nn.BatchNorm2d) and isinstance(following, nn.Conv2d):
                factors = torch.exp2(torch.rand(second.num_features, generator=draws) * 8 - 4)
                second.weight *= factors
                second.bias *= factors
                following.weight /= factors.view(1, -1, 1, 1)
    return model


def with_relu(model: nn.Module) -> nn.Module:
    """The same with relu in place of relu6."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU())
    return model


def accuracy_rows(seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    """Float, calibrated and trained accuracy for both schemes, seed by seed."""
    for scheme, limit, lr in (("3 bit per tensor", 3, 5e-4), ("8 bit per tensor, unbalanced channels", 127, 5e-4)):
        for seed in range(seeds):
            found, labels = trained(seed, relu=limit == 127)
            model = found.model.requires_grad_(True)
            if limit == 127:
                unbalanced(model, seed)
            row = {"scheme": scheme, "seed": seed, "float": accuracy(model, found)}
            with started(model, found.train_images, limit) as run:
                row["calibrated"] = accuracy(model, found)
                fit(model, found.train_images, labels, steps, lr=lr, seed=seed)
                row["trained"] = accuracy(model, found)
            del run
            yield {name: round(v, 2) if isinstance(v, float) else v for name, v in row.items()} | {"steps": steps}


def trained(seed: int, *, relu: bool = False) -> tuple[digits.Trained, Tensor]:
    """A network of this seed, and the labels of its training images."""
    from sklearn.datasets import load_digits

    plain = digits.mobilenet
    try:
        if relu:
            digits.mobilenet = lambda: with_relu(plain())
        found = digits.trained("mobilenet", seed=seed)
    finally:
        digits.mobilenet = plain
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(1797)[:1200]
    return found, torch.tensor(load_digits().target)[order]


def cost_rows(turns: int) -> Iterator[dict[str, Any]]:
    """CPU milliseconds of a step: float (eval-mode batch norm), ours, torchao's PT2E; in turns."""
    found, labels = trained(0)
    yield from cost_of("digits MobileNet", found.model, found.train_images, labels[:BATCH], turns)
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 64, 64, generator=draws)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, _ = models.resnet18(64)
    yield from cost_of("ResNet-18 at 64 x 64", model.eval(), images, torch.arange(BATCH) % 10, turns)


def cost_of(name: str, model: nn.Module, images: Tensor, labels: Tensor, turns: int) -> Iterator[dict[str, Any]]:
    """The three steps of one network, on as many images as there are labels."""
    batch = images[: len(labels)]
    nets: dict[str, nn.Module] = {"float": copy.deepcopy(model).requires_grad_(True)}
    ours = copy.deepcopy(model).requires_grad_(True)
    data = [images[i : i + 32] for i in range(0, min(256, len(images)), 32)]
    run = deploykit.qat(ours, example_inputs=(images[:1],), calibration=data, progress=False)
    run.attach()
    nets["deploykit.qat"] = ours
    try:
        with quiet():
            nets[PEER] = pt2e(copy.deepcopy(model).requires_grad_(True), batch)
    except Exception as error:  # whatever the peer cannot do is said, and costs no row of ours
        print(f"{PEER} does not prepare {name}: {type(error).__name__}", flush=True)
    times: dict[str, list[float]] = {kind: [] for kind in nets}
    optimisers = {kind: torch.optim.SGD(net.parameters(), 1e-4) for kind, net in nets.items()}
    for turn in range(turns):
        for kind, net in nets.items():
            began = time.process_time()
            loss = nn.functional.cross_entropy(net(batch), labels)
            optimisers[kind].zero_grad()
            loss.backward()
            optimisers[kind].step()
            if turn > 2:
                times[kind].append((time.process_time() - began) * 1e3)
    for kind, each in times.items():
        others = (("x float", "float"), ("x PT2E", PEER))
        against = {column: ratio(each, times[other]) if other in times else None for column, other in others}
        yield {"network": name, "step": kind, "cpu_ms": round(statistics.median(each), 1), **against}


def ratio(times: list[float], others: list[float]) -> float:
    """The median of the ratios of neighbouring turns."""
    return round(statistics.median(a / b for a, b in zip(times, others, strict=True)), 2)


def pt2e(model: nn.Module, images: Tensor) -> nn.Module:
    """The same model prepared by torchao for training on x86, with a batch of this size."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    program = torch.export.export(model.train(), (images,))
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared: nn.Module = prepare_qat_pt2e(program.module(), quantizer)
    move_exported_model_to_train(prepared)
    return prepared


def artifact_rows(targets: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """Every target's artifact against the graph that was trained for it."""
    found, labels = trained(0)
    for target in targets:
        model = copy.deepcopy(found.model).requires_grad_(True)
        data = [found.train_images[i : i + 32] for i in range(0, 256, 32)]
        row: dict[str, Any] = {"target": target}
        try:
            with quiet():
                run = deploykit.qat(
                    model, target, example_inputs=(found.train_images[:1],), calibration=data, progress=False
                )
                with run:
                    fit(model, found.train_images, labels, steps, lr=5e-4, seed=0)
                with tempfile.TemporaryDirectory() as folder:
                    artifact = run.export(output=Path(folder) / "a", profile=False, progress=False, strict=False)
                    row |= compared(artifact, run, found)
        except DeploykitError as error:
            row["missing"] = str(error).splitlines()[0][:100]
        yield row


def compared(artifact: Any, run: Trained, found: digits.Trained) -> dict[str, Any]:
    """SQNR and equal argmax over the held-out images, one by one."""
    name = artifact.manifest.inputs[0].name
    signal = noise = equal = 0.0
    with artifact.plugin().open_for_parity(artifact) as session:  # TensorRT's file runs in ONNX Runtime
        for image in found.test_images:
            feeds = {name: image[None].numpy()}
            (want,), (have,) = run.run(feeds).values(), session.run(feeds).values()
            signal += float(np.square(want, dtype=np.float64).sum())
            noise += float(np.square(want.astype(np.float64) - have).sum())
            equal += float(want.argmax() == have.argmax())
    sqnr = 10 * np.log10(signal / noise) if noise else 200.0
    return {"sqnr_db": round(float(sqnr), 1), "argmax_equal_%": round(100 * equal / len(found.test_images), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--turns", type=int, default=23)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = kept(arguments.parts)
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "accuracy": lambda: accuracy_rows(arguments.seeds, arguments.steps),
        "cost": lambda: cost_rows(arguments.turns),
        "artifacts": lambda: artifact_rows(arguments.targets, 20),
    }
    for part in arguments.parts:
        for row in parts[part]():
            rows.append({"part": part, **row})
            print(rows[-1], flush=True)
            record("training", rows, notes=NOTES)


def kept(parts: list[str]) -> list[dict[str, Any]]:
    """The rows of an earlier run of other parts on this kind of CPU."""
    path = RESULTS / "training.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": [], "machine": None}
    same = found["machine"] == json.loads(json.dumps(asdict(this_host())))
    return [row for row in found["rows"] if same and row["part"] not in parts]


if __name__ == "__main__":
    main()
