"""What rounding weights for their inputs and equalising channels buy, and what they cost.

    python benchmarks/rounding.py [--parts int4 int8 spread] [--seeds 3]

`int4`: weight-only transformers for `x86-cpu`, the artifact itself in ONNX Runtime. `int8`: static, simulated on the
scheme of each target. `spread`: networks that compute the same as trained ones, with channels of very different size
(a trained digits MobileNet between its bottlenecks, a small ViT behind its norms). All on samples that nothing saw.
Seconds are of the process on one thread: preparing with the algorithm less preparing without.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import quiet, record, report, scratch
from quality import Case, bert_case, digits_case, image_case, vit_case

from deploykit import pipeline
from deploykit.capture import CapturedModel
from deploykit.contract.errors import DeploykitError
from deploykit.judge.parity import OutputComparison
from deploykit_calibration.algorithms import apply
from deploykit_calibration.channel_scales import scaled_channels, scaled_weights
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.reweigh import with_weights

NOTES = ["one thread; int4 in ONNX Runtime, int8 simulated; held-out samples"]
TARGETS = ("x86-cpu", "jetson-orin", "android", "iphone-15")


@dataclass(frozen=True)
class Subject:
    """A captured and calibrated network with test samples."""

    captured: CapturedModel
    run: Any
    test: list[tuple[Any, ...]]
    labels: np.ndarray | None = None


def subject(case: Case, change: Callable[[CapturedModel], CapturedModel] = lambda captured: captured) -> Subject:
    """Capture, change, calibrate."""
    with quiet():
        captured = change(pipeline.capture(case.model, example_inputs=case.calibration[0], dynamic_batch=True))
        return Subject(captured, pipeline.calibrate(captured, case.calibration, progress=False), case.test, case.labels)


def prepared(of: Subject, target: str, precision: str, algorithms: tuple[str, ...]) -> tuple[Prepared, float]:
    """What is lowered, and the CPU seconds of preparing it."""
    began = time.process_time()
    made = pipeline.prepare(pipeline.request(target, precision, algorithms=algorithms), of.captured, of.run)
    _ = made.placed
    return made, time.process_time() - began


def int4(seeds: int) -> Iterator[dict[str, Any]]:
    """Artifacts of int4-weight-only, over seeds of the weights."""
    for name, make in (("vit", vit_case), ("bert", bert_case)):
        for seed in range(seeds):
            try:
                of = subject(replace(make(), model=_seeded(make, seed)))
            except DeploykitError as error:  # a random ViT may be too chaotic to be captured within its gate
                print(f"{name} {seed}: {error}")
                continue
            plain, before = prepared(of, "x86-cpu", "int4-weight-only", ())
            rounded, took = prepared(of, "x86-cpu", "int4-weight-only", ("gptq",))
            yield _exported(f"{name} {seed}", of, plain, (), before)
            yield _exported(f"{name} {seed}", of, rounded, ("gptq",), took - before)
            yield _exported(f"{name} {seed}", of, _wider(rounded), ("gptq", "last two layers in 8 bits"), took - before)


def _exported(name: str, of: Subject, made: Prepared, algorithms: tuple[str, ...], seconds: float) -> dict[str, Any]:
    with scratch() as folder, quiet():
        payload = pipeline.lower(made, folder / "payload")
        judged = pipeline.judge(made, payload, folder / "payload", of.run, data=of.test)
    return _row(name, "x86-cpu", "int4-weight-only", algorithms, judged.sqnr_db, seconds)


def _wider(rounded: Prepared) -> Prepared:
    """The same with the two last layers held in 8 bits, as a recipe may say, and the others rounded beside them."""
    narrow = [layer.name for layer in rounded.layers if layer.precision == "int4-weights"]
    plain = replace(
        rounded, captured=rounded.exact, unrounded=None, applied=(), wider=dict.fromkeys(narrow[-2:], "last")
    )
    return apply(plain, ["gptq"])


def _seeded(make: Callable[[], Case], seed: int) -> Any:
    model = make().model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # as the library initialises them: weights of 0.02, biases and norms as they are
                parameter.normal_(0.0, 0.02, generator=generator)
    return model


def int8(seeds: int) -> Iterator[dict[str, Any]]:
    """Static int8 as simulated."""
    del seeds
    cases = {
        "digits_mobilenet": lambda: digits_case("mobilenet"),
        "vit": vit_case,
        "mobilenet_v2": lambda: image_case("mobilenet_v2"),
    }
    for name, make in cases.items():
        tried = ((), ("gptq",), ("equalize",), ("smooth",))
        yield from simulated(name, subject(make()), tried, TARGETS[:3])


def spread(seeds: int) -> Iterator[dict[str, Any]]:
    """Networks that compute the same as others, with channels that are log-normally far apart (factor e^3)."""
    for seed in range(seeds):
        of = subject(
            digits_case("mobilenet", seed=seed),
            lambda captured, seed=seed: spread_channels(captured, seed, norms=False),
        )
        yield from simulated(
            f"digits_mobilenet, spread {seed}", of, ((), ("best",), ("equalize",), ("equalize", "gptq"))
        )
    of = subject(vit_case(), partial(spread_channels, seed=0, norms=True))
    yield from simulated("vit, spread behind norms", of, ((), ("best",), ("smooth",), ("smooth", "gptq")))


def spread_channels(captured: CapturedModel, seed: int, *, norms: bool) -> CapturedModel:
    """The same network with channels log-normally far apart (factor e^3), behind norms or between other layers."""
    generator = torch.Generator().manual_seed(seed)
    sets = [each for each in scaled_channels(captured) if bool(each.norms) == norms]
    numbers = [(3 * torch.randn(each.size, generator=generator)).double().exp() for each in sets]
    return with_weights(captured, scaled_weights(captured, list(zip(sets, numbers, strict=True))))


def simulated(
    name: str, of: Subject, tried: tuple[tuple[str, ...], ...], targets: tuple[str, ...] = TARGETS
) -> Iterator[dict[str, Any]]:
    """A row for every target and list of algorithms; with top-1 where there are labels."""
    feeds = [{spec.name: t for spec, t in zip(of.captured.inputs, x, strict=True)} for x in of.test]
    key = of.captured.outputs[0].name
    wanted = [of.captured.run(each)[key].numpy() for each in feeds]
    if of.labels is not None:
        yield {**_row(name, "float", "fp32", (), None, None), "top-1 %": _top1(wanted, of.labels)}
    for target in targets:
        plain = 0.0
        for algorithms in tried:
            made, seconds = prepared(of, target, "int8", algorithms)
            plain = plain if algorithms else seconds
            assert made.simulation is not None
            got = [made.simulation.run({n: t.numpy() for n, t in each.items()})[key] for each in feeds]
            comparison = OutputComparison(key)
            for want, have in zip(wanted, got, strict=True):
                comparison.add(want, have)
            row = _row(name, target, "int8", algorithms, comparison.metrics.sqnr_db, seconds - plain)
            yield {**row, "top-1 %": _top1(got, of.labels) if of.labels is not None else None}


def _top1(outputs: list[np.ndarray], labels: np.ndarray) -> float:
    return round(100 * float((np.concatenate(outputs).argmax(1) == labels).mean()), 2)


def _row(
    model: str, target: str, precision: str, algorithms: tuple[str, ...], db: float | None, seconds: float | None
) -> dict[str, Any]:
    row = {
        "model": model,
        "target": target,
        "precision": precision,
        "algorithms": " + ".join(algorithms),
        "SQNR dB": None if db is None else round(db, 2),
        "CPU s": None if seconds is None else round(max(seconds, 0.0), 1),
        "top-1 %": None,
    }
    print(row, flush=True)
    return row


PARTS: dict[str, Callable[[int], Iterator[dict[str, Any]]]] = {"int4": int4, "int8": int8, "spread": spread}


def main() -> None:
    """All parts; a table and `results/rounding_PART.json` for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        rows: list[dict[str, Any]] = []
        for row in PARTS[part](arguments.seeds):
            rows.append(row)
            record(f"rounding_{part}", rows, notes=NOTES)  # a run that is cut keeps its rows
        report(f"rounding_{part}", rows, notes=NOTES)


if __name__ == "__main__":
    main()
