"""`form="neuralnetwork"`: one file for systems before iOS 15, proved by an evaluator that reads its layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversions import NEEDS_COREMLTOOLS, convert
from test_convert import ZOO

import deploykit
from deploykit.contract.precision import Precision
from deploykit.judge.profiling import Effort
from deploykit.plugin.registry import resolve
from deploykit.testing import models
from deploykit_targets.coreml.nn_evaluator import UnsupportedLayerError, load

pytestmark = NEEDS_COREMLTOOLS
OLD = {"form": "neuralnetwork"}
SHORT = Effort(seconds=0.02, max_runs=2)
LABELS = [f"class {index}" for index in range(10)]


def export(name: str, precision: str, folder: Path, **changes: Any) -> deploykit.Artifact:
    model, example = ZOO[name]()
    options = OLD | changes.pop("options", {})
    return deploykit.export(
        model,
        target="coreml",
        precision=precision,
        example_inputs=example,
        output=folder / "out",
        progress=False,
        options=options,
        **{"profile": False, **changes},
    )


# A few dB below what was measured.
@pytest.mark.parametrize(
    ("name", "precision", "floor_db", "counted", "system"),
    [
        ("residual_cnn", "fp32", 120.0, "float32", "iOS 13"),
        ("mobilenet_like", "fp16", 62.0, "float16", "iOS 13"),
        pytest.param("unet_like", "int8-weight-only", 60.0, "int8", "iOS 14", marks=pytest.mark.nightly),
        ("transformer_encoder", "fp16", 62.0, "float16", "iOS 14"),
        pytest.param("vision_transformer", "fp32", 110.0, "float32", "iOS 14", marks=pytest.mark.nightly),
        ("lstm_classifier", "int6-palette", 35.0, "6-bit palette", "iOS 14"),
        pytest.param("gru_classifier", "int8-weight-only", 45.0, "int8", "iOS 14", marks=pytest.mark.nightly),
        ("two_inputs_dict_output", "int4-palette", 30.0, "4-bit palette", "iOS 13"),
    ],
)
def test_models_in_their_precisions(
    name: str, precision: str, floor_db: float, counted: str, system: str, tmp_path: Path
) -> None:
    artifact = export(name, precision, tmp_path)
    assert artifact.entry.name == "model.mlmodel"
    assert artifact.parity is not None and artifact.parity.sqnr_db > floor_db
    assert artifact.parity.evidence == "reference"
    assert artifact.achieved.macs_fraction(counted) > 0.9 and "unknown" not in artifact.achieved.ops
    assert artifact.achieved.source == "the neural network"
    facts = artifact.manifest.metadata
    assert facts["form"] == "neuralnetwork" and facts["os_floor"].startswith(system)
    assert facts["specification_version"] == {"iOS 13": 4, "iOS 14": 5}[system]


def test_the_file_runs_by_itself(tmp_path: Path) -> None:
    artifact = export("mlp", "fp16", tmp_path)
    taken = artifact.entry.rename(tmp_path / "old.mlmodel")
    np.save(tmp_path / "x.npy", artifact.golden().inputs[0]["input"])
    command = [sys.executable, "-m", "deploykit", "run", str(taken), "-i", "x.npy", "-o", "y.npz", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["runs"] == 1
    with np.load(tmp_path / "y.npz") as outputs:
        np.testing.assert_array_equal(outputs["output"], artifact.golden().outputs[0]["output"])


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        convert(models.residual_cnn(), folder, precision=Precision.INT4_PALETTE, options=OLD)
        files.append((folder / "model.mlmodel").read_bytes())
    assert files[0] == files[1]
    for stranger in (b"conversion_date", str(tmp_path).encode(), b"site-packages"):
        assert stranger not in files[0]


def test_images_and_labels(tmp_path: Path) -> None:
    image = {"image_input": "x", "image_scale": 1 / 127.5, "image_bias": [-1.0, -0.5, 0.25], "image_color": "BGR"}
    artifact = export("residual_cnn", "fp32", tmp_path, options=image | {"class_labels": LABELS})
    assert artifact.parity is not None and artifact.parity.sqnr_db > 100.0
    network = load(artifact.entry)
    assert network.inputs[0].image is not None and network.inputs[0].image.color == "BGR"
    feeds = artifact.golden().inputs[0]
    with artifact.open() as session:
        output = session.run(feeds)["output"]
    planes = (feeds["x"] - np.array([-1.0, -0.5, 0.25], np.float32).reshape(-1, 1, 1)) * 127.5
    assert str(network.run({"x": planes.astype(np.float32)})["classLabel"]) == LABELS[int(output.argmax())]


def test_ranged_and_enumerated_shapes(tmp_path: Path) -> None:
    model, (x,) = models.residual_cnn()
    batch = torch.export.Dim("batch", min=1, max=3)
    ranged = export("residual_cnn", "fp32", tmp_path / "r", dynamic_shapes={"x": {0: batch}})
    profile = resolve("coreml").target.profile(ranged, effort=SHORT)
    assert set(profile.throughput_by_batch) <= {"1", "2", "3"} and any("iOS 13" in note for note in profile.notes)
    assert load(ranged.entry).inputs[0].ranges[0] == (1, 3)
    shapes = [[size, *x.shape[1:]] for size in (1, 2, 5)]
    listed = export(
        "residual_cnn", "fp32", tmp_path / "e", dynamic_batch=True, options={"enumerated_shapes": {"x": shapes}}
    )
    for artifact, size in ((ranged, 3), (listed, 5)):
        many = x.repeat(size, 1, 1, 1)
        with artifact.open() as session:
            np.testing.assert_allclose(
                session.run({"x": many.numpy()})["output"], model.eval()(many).detach().numpy(), atol=1e-4
            )
            with pytest.raises(deploykit.UsageError, match="the model takes"):
                session.run({"x": x.repeat(4, 1, 1, 1).numpy()})


@pytest.mark.parametrize(
    ("precision", "options", "error", "said"),
    [
        ("int4-weight-only", {}, deploykit.UnsupportedPrecisionError, "no int4-weight-only; it has fp16, fp32"),
        ("fp32", {"deployment_target": "iOS17"}, deploykit.UsageError, "op set of ML Programs"),
    ],
)
def test_what_the_form_does_not_have_is_refused(
    precision: str, options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        convert(models.mlp(), tmp_path, precision=Precision(precision), options=OLD | options)
    assert not list(tmp_path.iterdir())


def test_static_int8_is_refused_with_the_way_out(tmp_path: Path) -> None:
    _, example = ZOO["mlp"]()
    with pytest.raises(deploykit.UnsupportedPrecisionError, match="no int8;") as caught:
        export("mlp", "int8", tmp_path, calibration=[example])
    assert "neuralnetwork" in str(caught.value.hint)


class Scattered(torch.nn.Module):
    """Ends in a layer that the evaluator has no rule for."""

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.scatter(x, 1, index, x * 2)


def test_a_layer_that_cannot_be_checked_publishes_nothing(tmp_path: Path) -> None:
    example = (torch.randn(2, 3), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    with pytest.raises(UnsupportedLayerError, match="'scatterAlongAxis'") as caught:
        deploykit.export(
            Scattered(), "coreml", "fp32", example_inputs=example, options=OLD, output=tmp_path / "out", progress=False
        )
    assert "export an ML Program" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
