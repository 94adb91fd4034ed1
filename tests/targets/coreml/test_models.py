"""Every family of models in every form of precision: the written package, evaluated, against the float model.

A model is captured and calibrated once and converted five times; the pipeline around it is tested beside this file. The
floors are 2 to 6 dB below what was measured: they notice a loss, and do not break on another version of a library.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversions import NEEDS_COREMLTOOLS
from test_convert import ZOO

import deploykit
from deploykit.capture import CapturedModel, capture
from deploykit.contract.precision import Precision
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.steps import lower, prepare
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_calibration.observe import CalibrationRun
from deploykit_targets.coreml.mil_evaluator import load

pytestmark = NEEDS_COREMLTOOLS

Prepared = tuple[CapturedModel, Any, list[tuple[torch.Tensor, ...]]]
PRECISIONS = ("fp32", "fp16", "int8", "int8-weight-only", "int6-palette")
BY_DAY = [p if p in ("fp16", "int8") else pytest.param(p, marks=pytest.mark.nightly) for p in PRECISIONS]
COUNTED = dict(zip(PRECISIONS, ("float32", "float16", "int8", "int8", "6-bit palette"), strict=True))

FLOORS_DB = {
    #                           fp32   fp16  int8  int8 w. 6-bit palette
    "residual_cnn": (90.0, 65.0, 41.0, 45.0, 30.0),
    "mobilenet_like": (90.0, 61.0, 37.0, 42.0, 35.0),
    "transformer_encoder": (90.0, 58.0, 36.0, 44.0, 30.0),
    "vision_transformer": (90.0, 58.0, 29.0, 31.0, 27.0),
    "lstm_classifier": (90.0, 66.0, 43.0, 44.0, 32.0),
    "gru_classifier": (90.0, 66.0, 45.0, 48.0, 40.0),
    "two_inputs_dict_output": (90.0, 60.0, 39.0, 45.0, 35.0),
}
RECURRENT = ("lstm_classifier", "gru_classifier")
# One family in every precision by day; the others in the one that loses most where something is wrong. The steps of
# recurrent layers, which take half a minute to convert in int8, have `test_recurrent`.
CASES = [
    (name, precision)
    if name == "residual_cnn"
    or (precision == "int8" and name not in RECURRENT)
    or (name, precision) == ("lstm_classifier", "fp16")
    else pytest.param(name, precision, marks=pytest.mark.nightly)
    for name in FLOORS_DB
    for precision in PRECISIONS
]


@cache
def calibrated(name: str) -> Prepared:
    """A captured model, its calibration, and the samples, in the order of its inputs."""
    model, example = ZOO[name]()
    data = batches(example)
    table = deploykit.calibrate(model, data, example_inputs=example, progress=False)
    captured = capture(model.eval(), example_inputs=example)
    names = [spec.name for spec in captured.inputs]
    return captured, table, [tuple(s[n] for n in names) if isinstance(s, dict) else tuple(s) for s in data]


def sqnr_db(package: Path, captured: CapturedModel, samples: list[tuple[torch.Tensor, ...]]) -> float:
    """Signal over noise of all outputs together, the package evaluated and the float model in PyTorch."""
    program = load(package)
    signal = noise = 0.0
    for sample in samples:
        feeds = {s.name: t.numpy() for s, t in zip(captured.inputs, sample, strict=True)}
        feeds = {key: array.astype(np.int32) if array.dtype == np.int64 else array for key, array in feeds.items()}
        got = program.run(feeds)
        with torch.no_grad():
            wanted = captured.graph_module(*sample)
        for spec, want in zip(captured.outputs, wanted, strict=True):
            signal += float(want.double().square().sum())
            noise += float((want.double() - torch.from_numpy(got[spec.name]).double()).square().sum())
    return 10 * float(np.log10(signal / max(noise, signal * 1e-20)))


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_parity(name: str, precision: str, tmp_path: Path) -> None:
    captured, table, samples = calibrated(name)
    run = CalibrationRun(table) if Precision(precision).is_static else None
    conversion = lower(prepare(make_request("coreml", precision), captured, run), tmp_path)
    assert (
        sqnr_db(tmp_path / "model.mlpackage", captured, samples)
        > dict(zip(PRECISIONS, FLOORS_DB[name], strict=True))[precision]
    )
    assert conversion.achieved.macs_fraction(COUNTED[precision]) > 0.9
    assert "unknown" not in conversion.achieved.ops


LABELS = [f"class {index}" for index in range(10)]
CLASSIFIER = {"image_input": "x", "image_scale": 1 / 64, "image_bias": [-2.0], "class_labels": LABELS}


@pytest.mark.parametrize("precision", BY_DAY)
@pytest.mark.parametrize("kind", ["dynamic batch", "image classifier"])
def test_other_interfaces(kind: str, precision: str, tmp_path: Path) -> None:
    """Through the whole pipeline, whose gates are those of the precision."""
    model, example = models.residual_cnn()
    dynamic = kind == "dynamic batch"
    artifact = deploykit.export(
        model,
        target="coreml",
        precision=precision,
        example_inputs=example,
        calibration=batches(example) if precision == "int8" else None,
        dynamic_batch=dynamic,
        options={} if dynamic else CLASSIFIER,
        output=tmp_path / "out",
        profile=False,
        progress=False,
    )
    assert artifact.parity is not None and artifact.parity.passed
    size = 3 if dynamic else 1
    x = torch.randn(size, *example[0].shape[1:], generator=torch.Generator().manual_seed(1))
    expected = model.eval()(x).detach().numpy()
    with artifact.open() as session:
        got = session.run({"x": x.numpy()})["output"]
    assert got.shape == expected.shape
    assert np.square(expected).sum() / np.square(got - expected).sum() > 10 ** (28 / 10)
