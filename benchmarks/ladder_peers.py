"""What peers reach on the networks of `ladder.py`: NNCF's accuracy control, ModelOpt's `auto_quantize`.

They calibrate with 16 of a network's samples and search on the other 8; rows have the columns of `ladder.py`. NNCF runs
without its preset for transformers, which made of the ViT's ONNX graph one of 3 dB that no reverted layer repaired.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from claims import sqnr_db
from harness import quiet
from ladder_networks import JUDGED, Network

import deploykit

COLUMNS = ("sqnr_db", "over_start_db", "fresh_db", "int8_share", "seconds")


def row_of(name: str, target: str, step: str, outcome: str = "", **figures: float | None) -> dict[str, Any]:
    """A row of the table; what is not measured is empty."""
    digits = {"int8_share": 4, "seconds": 1}
    known = {name: figures.get(name) for name in COLUMNS}
    rounded = {name: None if x is None else round(x, digits.get(name, 2)) for name, x in known.items()}
    return {"network": name, "target": target, "step": step, "outcome": outcome, **rounded}


def tried(name: str, peer: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A peer's row; what it refuses is its figure."""
    try:
        return make()
    except Exception as error:
        return row_of(name, peer, "all", f"{type(error).__name__}: {' '.join(str(error).split())[-160:]}")


NNCF = "NNCF accuracy control"


def nncf(name: str, made: Network, least: float, folder: Path) -> dict[str, Any]:
    """NNCF's accuracy control over the float ONNX file, with the noise as the metric that may rise."""
    import nncf
    import onnx
    import onnxruntime

    with quiet():
        plain = deploykit.export(
            made.model, "x86-cpu", "fp32", example_inputs=(made.samples[0],), output=folder / f"{name}-float",
            profile=False, progress=False, options={"opset": 18},
        )  # fmt: skip
    graph = onnx.load(plain.entry)
    given = plain.inputs[0].name

    def outputs(serialised: bytes, samples: Any) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
        return [session.run(None, {given: x.numpy()})[0] for x in samples]

    judging = made.samples[-JUDGED:]
    wanted = outputs(graph.SerializeToString(), judging)
    power = sum(float(np.square(x).sum()) for x in wanted)

    def quality(candidate: Any, _: Any) -> tuple[float, None]:
        pairs = zip(wanted, outputs(candidate.SerializeToString(), judging), strict=True)
        return 1.0 - sum(
            float(np.square(x - y).sum()) for x, y in pairs
        ) / power, None  # NNCF divides by the float one's

    began = time.process_time()
    feeds = [{given: x.numpy()} for x in made.samples]
    with quiet():
        found = nncf.quantize_with_accuracy_control(
            graph, nncf.Dataset(feeds[:-JUDGED]), nncf.Dataset(feeds[-JUDGED:]), quality,
            max_drop=10 ** (-least / 10), drop_type=nncf.DropType.ABSOLUTE,
        )  # fmt: skip
    spent = time.process_time() - began
    serialised = found.SerializeToString()
    reached = sqnr_db(wanted, outputs(serialised, judging))
    fresh = sqnr_db(outputs(graph.SerializeToString(), made.fresh), outputs(serialised, made.fresh))
    step = f"all: {least:g} dB {'met' if reached >= least else 'missed'}"
    share = integer_share(found)
    return row_of(name, NNCF, step, sqnr_db=reached, fresh_db=fresh, int8_share=share, seconds=spent)


def modelopt(
    name: str, made: Network, least: float, folder: Path, python: str, method: str, large: bool
) -> dict[str, Any]:
    """ModelOpt's `auto_quantize` in its own interpreter; see `ladder_modelopt.py`."""
    from safetensors.torch import save_file

    weights = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in made.model.state_dict().items()}, weights)
    program = Path(__file__).with_name("ladder_modelopt.py")
    command = [python, str(program), name, str(weights), str(least), method, *(["--large"] if large else [])]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    peer = f"ModelOpt {found.pop('version')} auto_quantize, {method}"
    step = f"all: {least:g} dB {'missed' if found['sqnr_db'] is None else 'met'}"
    return row_of(name, peer, step, f"{found.pop('bits'):.3g} bits", **found)


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
