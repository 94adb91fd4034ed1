"""Images, labels, ranged and enumerated shapes: what the package declares, and what a session makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversions import NEEDS_COREMLTOOLS, convert

import deploykit
from deploykit.testing import models
from deploykit_targets.coreml.mil_evaluator import load

pytestmark = NEEDS_COREMLTOOLS

LABELS = [f"class {index}" for index in range(10)]


def export(folder: Path, options: dict[str, Any], precision: str = "fp32", **changes: Any) -> deploykit.Artifact:
    model, example = models.residual_cnn()
    return deploykit.export(
        model,
        target="coreml",
        precision=precision,
        example_inputs=example,
        options=options,
        output=folder / "out",
        profile=False,
        progress=False,
        **changes,
    )


def test_an_image_input_keeps_the_models_own_tensor_for_sessions(tmp_path: Path) -> None:
    options = {"image_input": "x", "image_scale": 1 / 127.5, "image_bias": [-1.0, -0.5, 0.25], "image_color": "BGR"}
    artifact = export(tmp_path, options)
    assert artifact.parity is not None and artifact.parity.sqnr_db > 80.0
    spec = load(artifact.entry.parent).inputs[0]
    assert spec.image is not None and spec.image.color == "BGR"
    assert artifact.verify().sqnr_db > 80.0


def test_class_labels_make_a_classifier(tmp_path: Path) -> None:
    artifact = export(tmp_path, {"class_labels": LABELS})
    program = load(artifact.entry.parent)
    feeds = artifact.golden().inputs[0]
    results = program.run({name: array.astype(np.float32) for name, array in feeds.items()})
    with artifact.open() as session:
        output = session.run(feeds)["output"]
    assert output.shape == (1, 10)
    assert str(results["classLabel"]) == LABELS[int(output.argmax())]


def test_ranges_come_from_capture_and_are_bounded(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=6)
    convert(models.residual_cnn(), tmp_path, dynamic_shapes={"x": {0: batch}})
    assert load(tmp_path / "model.mlpackage").inputs[0].ranges[0] == (1, 6)
    other = tmp_path / "unbounded"
    other.mkdir()
    convert(models.residual_cnn(), other, dynamic_batch=True, options={"max_size": 4})
    assert load(other / "model.mlpackage").inputs[0].ranges[0] == (1, 4)


def test_enumerated_shapes_are_declared(tmp_path: Path) -> None:
    model, (x,) = models.residual_cnn()
    shapes = [[size, *x.shape[1:]] for size in (1, 2, 4)]
    artifact = export(tmp_path, {"enumerated_shapes": {"x": shapes}}, dynamic_batch=True)
    program = load(artifact.entry.parent)
    assert program.inputs[0].enumerated == tuple(map(tuple, shapes))
    expected = model.eval()(x.repeat(2, 1, 1, 1)).detach().numpy()
    with artifact.open() as session:
        np.testing.assert_allclose(session.run({"x": x.repeat(2, 1, 1, 1).numpy()})["output"], expected, atol=1e-4)
        with pytest.raises(deploykit.UsageError, match="takes one of"):
            session.run({"x": x.repeat(3, 1, 1, 1).numpy()})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_input": "picture"}, "the inputs are"),
        ({"image_input": "x", "image_color": "GRAYSCALE"}, "cannot be a GRAYSCALE image"),
        ({"image_input": "x", "image_bias": [0.0, 0.0]}, "image_bias has one value, or 3"),
        ({"image_input": "x", "image_scale": float("nan")}, "all are finite"),
        ({"image_input": "x", "image_scale": 0.0}, "image_scale is not 0"),
        ({"class_labels": ["cat"]}, "has 1 labels"),
        ({"class_labels": [*LABELS[:9], LABELS[0]]}, "'class 0' twice"),
        ({"enumerated_shapes": {"x": []}}, "lists no shape for 'x'"),
        ({"compute_units": "gpu"}, "compute_units"),
        ({"form": "tree"}, "form"),
        ({"deployment_target": "iOS15"}, "deployment_target"),
        ({"enumerated_shapes": {"y": [[1]]}}, "names 'y'"),
        ({"enumerated_shapes": {"x": [[2, 3, 24, 24]]}}, "does not fit"),
        ({"max_size": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match=said):
        convert(models.residual_cnn(), tmp_path, options=options)
