"""What `deploykit.tune` finds by itself, with nothing chosen by hand.

    python benchmarks/tuned.py [--parts int4 int8 digits] [--targets x86-cpu ...]

`int4`: weight-only transformers for `x86-cpu`, 5 dB (and for a BERT 15 dB) above their plain export; some layers in 8
bits. `int8`: convolutional networks with random weights, 3 dB (MobileNetV2) and 2 dB (EfficientNet-B0) above their
plain export, once with nothing but int8 and once with layers in float. `digits`: a trained network, and the same with
channels that are log-normally far apart, within half a point of float on every target that runs here. Plain figures
are simulated on the held-out samples, tuned ones are of the artifact; seconds are of the process, without capture and
calibration. A row replaces that of its network, target and goal in the file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import models
import numpy as np
import torch
from harness import RESULTS, quiet, record, report, scratch
from quality import Case, bert_case, digits_case, image_case, vit_case
from rounding import spread_channels

import deploykit
from deploykit import pipeline
from deploykit.contract.errors import DeploykitError

NOTES = ["one thread; seconds of the process for the whole search, without capture and calibration"]
INT8_TARGETS = ("x86-cpu", "android", "jetson-orin")
DIGITS_TARGETS = (
    *("x86-cpu", "x86-cpu-avx2", "x86-cpu:openvino", "x86-cpu:aotinductor", "android", "iphone-15"),
    *("jetson-orin", "rtx-4090", "amd-mi210", "x86-cpu:tvm", "raspberry-pi-4"),
)
_FEW = 24


def searched(captured: Any, run: Any, target: str, precision: str, **goal: Any) -> dict[str, Any]:
    """One search, as a row."""
    with scratch() as folder, quiet():
        began = time.process_time()
        plan = deploykit.tune(
            captured, target, precision, calibration=run, strict=False, output=folder / "out", profile=False,
            progress=False, **goal,
        )  # fmt: skip
        seconds = time.process_time() - began
    last = next(step for step in reversed(plan.ladder) if step.on == "artifact")
    parity = plan.best.parity
    return {
        "target": target,
        "plain dB": _db(plan.ladder[0].sqnr_db),
        "tuned dB": _db(last.sqnr_db),
        "met": plan.met,
        "step": last.step.removesuffix(": artifact"),
        "algorithms": " + ".join(step.name for step in plan.recipe.algorithms if step.name != "bias-correction"),
        "share as asked": None if last.int8_share is None else round(last.int8_share, 3),
        "evaluations": sum(step.on == "simulation" for step in plan.ladder),
        "CPU s": round(seconds, 1),
        "evidence": str(parity.evidence) if parity is not None else None,
        **({} if last.drop is None else {"drop, points": round(100 * last.drop, 2)}),
    }


def _db(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 2)


def shared(model: Any, data: Sequence[Any]) -> tuple[Any, Any]:
    """One capture and one calibration for all searches."""
    with quiet():
        first = data[0] if isinstance(data[0], tuple) else (data[0],)
        captured = pipeline.capture(model, example_inputs=first)
        return captured, pipeline.calibrate(captured, list(data), progress=False)


def plain_db(captured: Any, run: Any, target: str, precision: str) -> float:
    """The SQNR to expect of the plain export: the lower end that the gate looks at."""
    with scratch() as folder, quiet():
        made = deploykit.export(
            captured, target, precision, calibration=run, strict=False, output=folder / "plain", profile=False,
            progress=False,
        )  # fmt: skip
    assert made.parity is not None and made.parity.sqnr_db is not None
    return made.parity.sqnr_db if made.parity.spread is None else made.parity.spread.low_db


def int4(targets: Sequence[str], networks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Transformers in int4 weights, some of them in 8 bits."""
    for name, make in (("vit", _of(vit_case)), ("bert", _of(bert_case)), ("llama", _llama)):
        if networks and name not in networks:
            continue
        captured, run = shared(*make())
        for target in targets or ("x86-cpu",):
            plain = plain_db(captured, run, target, "int4-weight-only")
            for more in (5.0, 15.0) if name == "bert" else (5.0,):
                found = searched(captured, run, target, "int4-weight-only", min_sqnr_db=plain + more)
                yield {"network": name, "asked": f"+{more:g} dB", **found}


def _of(make: Callable[[], Case]) -> Callable[[], tuple[Any, Sequence[Any]]]:
    def made() -> tuple[Any, Sequence[Any]]:
        case = make()
        return case.model, list(case.calibration)[:_FEW]

    return made


def _llama() -> tuple[Any, Sequence[Any]]:
    from ladder import llama

    torch.manual_seed(0)
    model, data = llama(False)
    return model.eval(), data


IMAGES: dict[str, Callable[[], Case]] = {
    "mobilenet_v2": lambda: image_case("mobilenet_v2"),
    "efficientnet_b0": lambda: replace(image_case("mobilenet_v2"), model=models.efficientnet_b0(settled=True)[0]),
}


def int8(targets: Sequence[str], networks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Convolutional networks with random weights, in nothing but int8, and with layers in float."""
    for name, more in (("mobilenet_v2", 3.0), ("efficientnet_b0", 2.0)):
        if networks and name not in networks:
            continue
        captured, run = shared(*_of(IMAGES[name])())
        for target in targets or INT8_TARGETS:
            plain = plain_db(captured, run, target, "int8")
            for allow in (("ptq", "rounding"), ("ptq", "rounding", "mixed")):
                found = searched(captured, run, target, "int8", min_sqnr_db=plain + more, allow=allow)
                yield {"network": name, "asked": f"+{more:g} dB", "allow": " ".join(allow), **found}


def digits(targets: Sequence[str], networks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A trained network, and the same function with channels far apart, within half a point of float."""
    del networks
    case = digits_case("mobilenet", seed=0)
    labels = case.labels
    assert labels is not None

    def right(session: Any) -> list[bool]:
        key, out = session.inputs[0].name, session.outputs[0].name
        logits = np.concatenate([session.run({key: sample[0].numpy()})[out] for sample in case.test])
        return (logits.argmax(1) == labels).tolist()

    for spread in (True, False):
        model = case.model
        if spread:
            with quiet():
                plain = pipeline.capture(case.model, example_inputs=case.calibration[0])
            model = spread_channels(plain, 0, norms=False).graph_module
        captured, run = shared(model, list(case.calibration))
        for target in targets or DIGITS_TARGETS:
            row = {"network": "digits, channels far apart" if spread else "digits", "asked": "-0.5 points"}
            try:
                yield {**row, **searched(captured, run, target, "int8", evaluate=right, max_drop=0.005)}
            except DeploykitError as error:
                yield {**row, "target": target, "missing": str(error).splitlines()[0][:160]}


Part = Callable[[Sequence[str], Sequence[str]], Iterator[dict[str, Any]]]
PARTS: dict[str, Part] = {"int4": int4, "int8": int8, "digits": digits}


def _known(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def _of_row(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("network", "target", "asked", "allow"))


def main() -> None:
    """All parts; a table and `results/tuned_PART.json` for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--targets", nargs="+", default=())
    parser.add_argument("--networks", nargs="+", default=())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        rows = _known(f"tuned_{part}")
        for row in PARTS[part](arguments.targets, arguments.networks):
            print(row, flush=True)
            rows = [*(each for each in rows if _of_row(each) != _of_row(row)), row]
            record(f"tuned_{part}", rows, notes=NOTES)  # a run that is cut keeps its rows
        report(f"tuned_{part}", rows, notes=NOTES)


if __name__ == "__main__":
    main()
