"""Models through the whole pipeline, and what the ML Program of each holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conversions import NEEDS_COREMLTOOLS

import deploykit
from deploykit.testing import models
from deploykit.testing.conformance import batches

pytestmark = NEEDS_COREMLTOOLS


class Windows(torch.nn.Module):
    """Windows of an image as Swin makes them: reshape, transpose, reshape over six axes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 16, 4, 4)
        self.mix = torch.nn.Linear(16, 16)
        self.fc = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        x = x.reshape(1, 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 16)
        return self.fc(torch.relu(self.mix(x)).mean(1))


class VisionTransformer(torch.nn.Module):
    """Patches, a class token, two layers of PyTorch's own encoder, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 32, 8, 8)
        self.token = torch.nn.Parameter(torch.zeros(1, 1, 32))
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return self.fc(self.encoder(torch.cat([self.token, patches], 1))[:, 0])


def image_model(kind: type[torch.nn.Module]) -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return kind().eval(), (torch.randn(1, 3, 32, 32),)


ZOO = {
    **models.ZOO,
    "windows": lambda: image_model(Windows),
    "vision_transformer": lambda: image_model(VisionTransformer),
}


def export(name: str, precision: str, folder: Path, **changes: object) -> deploykit.Artifact:
    model, example = ZOO[name]()
    arguments = {"calibration": batches(example)} if precision == "int8" else {}
    return deploykit.export(
        model,
        target="coreml",
        precision=precision,
        example_inputs=example,
        output=folder / "out",
        profile=False,
        progress=False,
        **{**arguments, **changes},  # type: ignore[arg-type]
    )


# Gates are those of the precision; the floors here are a few dB below what was measured, to notice a loss.
@pytest.mark.parametrize(
    ("name", "precision", "floor_db", "counted"),
    [
        ("mobilenet_like", "int8", 20.0, "int8"),
        ("lstm_classifier", "int8-weight-only", 40.0, "int8"),
        ("unet_like", "int6-palette", 25.0, "6-bit palette"),
        ("mlp", "int4-weight-only", 15.0, "int4"),
        ("windows", "int8", 25.0, "int8"),
    ],
)
def test_models_in_their_precisions(name: str, precision: str, floor_db: float, counted: str, tmp_path: Path) -> None:
    artifact = export(name, precision, tmp_path)
    assert artifact.parity is not None and artifact.parity.sqnr_db > floor_db
    assert artifact.parity.evidence == "reference"
    assert any("not on the Neural Engine" in note for note in artifact.parity.notes)
    assert artifact.achieved.macs_fraction(counted) > 0.9
    assert "unknown" not in artifact.achieved.ops
    assert artifact.achieved.source == "the ML Program"


def test_an_lstm_stays_native_and_a_gru_is_unrolled(tmp_path: Path) -> None:
    lstm = export("lstm_classifier", "fp16", tmp_path / "lstm").manifest.metadata["ops"]
    assert lstm["lstm"] == 2 and "while_loop" not in lstm
    gru = export("gru_classifier", "fp16", tmp_path / "gru").manifest.metadata["ops"]
    assert gru["tanh"] == 20 and "while_loop" not in gru  # two layers of ten steps


def test_int8_is_counted_in_the_program_layer_by_layer(tmp_path: Path) -> None:
    artifact = export("residual_cnn", "int8", tmp_path, exclude=["layer1.*"])
    layers = {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.weights}
    assert layers["conv1"] == "int8" and layers["layer1.conv1"] == "float16"
    ops = artifact.manifest.metadata["ops"]
    assert ops["quantize"] and ops["dequantize"] and ops["constexpr_affine_dequantize"] == 5
    assert artifact.manifest.metadata["made_for"]["conv2d_cast_fp16"] == "conv2d"


def test_the_op_set_is_that_of_the_device_raised_by_the_precision(tmp_path: Path) -> None:
    int4 = export("mlp", "int4-weight-only", tmp_path / "int4").manifest.metadata
    assert (int4["op_set"], int4["specification_version"]) == ("iOS18", 9)
    assert int4["os_floor"].startswith("iOS 18")
    old = export("mlp", "fp16", tmp_path / "old", options={"deployment_target": "iOS16"}).manifest.metadata
    assert (old["op_set"], old["specification_version"]) == ("iOS16", 7)


def test_noise_of_the_converter_is_kept_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export("mlp", "fp16", tmp_path)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
