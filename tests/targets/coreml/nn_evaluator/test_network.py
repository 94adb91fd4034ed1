"""Files: weights in every stored form, damaged and foreign files, inputs that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit_targets.coreml.mil_evaluator.milproto import import_coremltools
from deploykit_targets.coreml.nn_evaluator import load
from deploykit_targets.coreml.nn_evaluator.weights import stored, tensor

pytest.importorskip("coremltools", reason="the evaluator of neural networks reads files with coremltools")

WEIGHTS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def model(**changes: Any) -> Any:
    """y = W x, as a protobuf."""
    proto = import_coremltools().proto
    spec = proto.Model_pb2.Model(specificationVersion=4)
    for feature, size in ((spec.description.input.add(name="x"), 5), (spec.description.output.add(name="y"), 6)):
        feature.type.multiArrayType.shape.extend([1, size])
        feature.type.multiArrayType.dataType = 65568
    spec.neuralNetwork.arrayInputShapeMapping = changes.get("mapping", 1)
    layer = spec.neuralNetwork.layers.add(name="only", input=["x"], output=["y"])
    layer.innerProduct.inputChannels, layer.innerProduct.outputChannels = 5, 6
    layer.innerProduct.weights.floatValue.extend(WEIGHTS.reshape(-1)[: changes.get("weights", 30)])
    return spec


def saved(spec: Any, path: Path) -> Path:
    path.write_bytes(spec.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("bits", "mode", "form"),
    [
        (8, "linear_symmetric", "int8"),
        (8, "linear", "int8"),
        (5, "linear", "int5"),
        (4, "linear_lut", "4-bit palette"),
        (6, "linear_lut", "6-bit palette"),
        (16, "linear", "float16"),
    ],
)
def test_weights_are_decoded_as_coremltools_decodes_them(bits: int, mode: str, form: str) -> None:
    tools = import_coremltools()
    from coremltools.models.neural_network.quantization_utils import quantize_weights

    def quantized() -> Any:
        made = tools.models.MLModel(model(), skip_model_load=True)
        return quantize_weights(made, bits, mode).get_spec().neuralNetwork.layers[0].innerProduct.weights

    message = quantized()
    assert stored(message) == form
    got = tensor(message, (6, 5)).numpy()
    if bits == 16:
        np.testing.assert_array_equal(got, WEIGHTS.astype(np.float16).astype(np.float32))
        return
    again = tools.models.MLModel(model(), skip_model_load=True)
    spec = quantize_weights(again, bits, mode).get_spec()
    dense = quantize_weights(tools.models.MLModel(spec, skip_model_load=True), 32, "dequantization").get_spec()
    expected = np.array(dense.neuralNetwork.layers[0].innerProduct.weights.floatValue).reshape(6, 5)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_scales_of_another_axis() -> None:
    """Transposed convolutions have their output channels second."""
    message = model().neuralNetwork.layers[0].innerProduct.weights
    message.ClearField("floatValue")
    message.rawValue = bytes(range(6))
    message.quantization.numberOfBits = 8
    message.quantization.linearQuantization.scale.extend([1.0, 10.0, 100.0])
    got = tensor(message, (2, 3), axis=1).numpy()
    np.testing.assert_array_equal(got, np.arange(6).reshape(2, 3) * [1, 10, 100])


def test_what_is_damaged_or_foreign_is_named(tmp_path: Path) -> None:
    cases = [
        (b"\xff\xff\xff", "is not a Core ML specification"),
        (b"", "holds nothing, not a neural network"),
        (model(mapping=0).SerializeToString(), "before iOS 13"),
        (model(weights=29).SerializeToString(), "29 weights where its shape"),
    ]
    for content, said in cases:
        path = tmp_path / "m.mlmodel"
        path.write_bytes(content)
        with pytest.raises(deploykit.ArtifactError, match=said):
            load(path)
    with pytest.raises(deploykit.ArtifactError, match="no model file"):
        load(tmp_path / "absent.mlmodel")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rawValue", bytes(20), "20 weights"),
        ("int8RawValue", bytes(30), "int8 with quantized activations"),
    ],
)
def test_damaged_weights_are_refused(field: str, value: bytes, said: str, tmp_path: Path) -> None:
    spec = model()
    weights = spec.neuralNetwork.layers[0].innerProduct.weights
    weights.ClearField("floatValue")
    setattr(weights, field, value)
    weights.quantization.numberOfBits = 8
    with pytest.raises(deploykit.ArtifactError, match=said):
        load(saved(spec, tmp_path / "m.mlmodel"))


def test_a_palette_that_is_too_small_and_bits_that_do_not_exist(tmp_path: Path) -> None:
    spec = model()
    weights = spec.neuralNetwork.layers[0].innerProduct.weights
    weights.ClearField("floatValue")
    weights.rawValue = bytes([1] * 30)
    weights.quantization.numberOfBits = 8
    weights.quantization.lookupTableQuantization.floatValue.extend([0.5])
    with pytest.raises(deploykit.ArtifactError, match="outside their table"):
        load(saved(spec, tmp_path / "m.mlmodel"))
    weights.quantization.numberOfBits = 9
    with pytest.raises(deploykit.ArtifactError, match="9 bits"):
        load(saved(spec, tmp_path / "m.mlmodel"))
    weights.quantization.numberOfBits = 8
    weights.quantization.linearQuantization.scale.extend([1.0, 2.0])
    with pytest.raises(deploykit.ArtifactError, match="2 scales or biases for 6 channels"):
        load(saved(spec, tmp_path / "m.mlmodel"))


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    network = load(saved(model(), tmp_path / "m.mlmodel"))
    x = np.ones((1, 5), np.float32)
    np.testing.assert_allclose(network.run({"x": x})["y"], WEIGHTS.sum(1)[None], rtol=1e-5)
    for feeds, said in (({}, "is missing"), ({"z": x}, "no input 'z'"), ({"x": x[:, :4]}, "has shape")):
        with pytest.raises(deploykit.UsageError, match=said):
            network.run(feeds)


def test_an_image_input_is_scaled_plane_by_plane(tmp_path: Path) -> None:
    """Blue, green, red: each plane has the bias of its colour, and a picture in RGB order is turned around."""
    spec = model()
    del spec.neuralNetwork.layers[:]
    spec.neuralNetwork.layers.add(name="only", input=["x"], output=["y"]).copy.SetInParent()
    image = spec.description.input[0].type.imageType
    image.width, image.height, image.colorSpace = 2, 1, image.BGR
    spec.neuralNetwork.imageInputShapeMapping = 1
    scaler = spec.neuralNetwork.preprocessing.add(featureName="x").scaler
    scaler.channelScale, scaler.redBias, scaler.greenBias, scaler.blueBias = 0.5, 1.0, 2.0, 3.0
    network = load(saved(spec, tmp_path / "m.mlmodel"))
    picture = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)  # height, width, RGB
    expected = np.array([[[[30, 60]], [[20, 50]], [[10, 40]]]]) * 0.5 + np.array([3, 2, 1]).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(network.run({"x": picture})["y"], expected)
    scaler.Clear()
    spec.neuralNetwork.preprocessing[0].meanImage.meanImage.extend([0.0] * 6)
    with pytest.raises(deploykit.ArtifactError, match="preprocessing other than"):
        load(saved(spec, tmp_path / "m.mlmodel"))
