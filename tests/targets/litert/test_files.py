"""What is in the .tflite files: names, types, layout, precision per layer; and what sessions make of them.

Conversions take seconds each, so every artifact is exported once and shared.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.plugin.artifact import Artifact
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_calibration.unseen import MOST
from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.session import open_interpreter

pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")

Export = Callable[..., Artifact]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    made: dict[str, Artifact] = {}

    def _export(model: str, precision: str, **changes: Any) -> Artifact:
        key = f"{model}-{precision}-{sorted(changes.items())}"
        if key not in made:
            module, example_inputs = models.ZOO[model]()
            made[key] = deploykit.export(
                module,
                target="android",
                precision=precision,
                example_inputs=example_inputs,
                calibration=batches(example_inputs, 8),
                output=tmp_path_factory.mktemp("litert") / "artifact",
                profile=False,
                progress=False,
                **changes,
            )
        return made[key]

    return _export


def operators(artifact: Artifact) -> list[flatbuffer.Operator]:
    return list(flatbuffer.operators(flatbuffer.read(artifact.entry)))


def test_mobilenet_is_int8_throughout_and_gives_float(export: Export) -> None:
    """The last layer's input is rounded at run time: its products are int8, and what it gives is not rounded."""
    artifact = export("mobilenet_like", "int8")
    kinds = [op.kind for op in operators(artifact)]
    assert kinds[0] == "QUANTIZE" and kinds[-2:] == ["DEQUANTIZE", "FULLY_CONNECTED"]
    assert kinds.count("QUANTIZE") == 1 and kinds.count("DEQUANTIZE") == 1
    for op in operators(artifact)[1:-2]:
        assert op.outputs[0].dtype == "INT8", op
    weight = operators(artifact)[-1].inputs[1]
    assert weight is not None and weight.dtype == "INT8"
    assert artifact.achieved.macs_fraction("int8") == 1.0
    assert not artifact.achieved.not_as_requested
    assert artifact.manifest.metadata["file"]["rounded_at_run_time"] == ["linear"]


def test_int8_artifact_follows_the_simulated_graph_within_a_few_steps(export: Export) -> None:
    """Integer kernels round sums that the simulation keeps in float32: a step of the output's scale, seldom more."""
    artifact = export("mobilenet_like", "int8", options={"layout": "nhwc", "io": "int8"})
    scale = artifact.manifest.metadata["file"]["outputs"][0]["scale"]
    assert artifact.parity is not None
    link = artifact.parity.lowering
    assert link.worst.max_abs <= 3 * scale


def test_what_is_rounded_at_run_time_is_simulated(export: Export) -> None:
    """Beside it, the concatenation's file is exact: what differs is the order of float sums."""
    parity = export("concat_cnn", "int8").parity
    assert parity is not None
    link = parity.lowering
    assert link.worst.sqnr_db is not None and link.worst.sqnr_db > 45.0
    simulated, artifact = parity.chain[0].worst.sqnr_db, parity.sqnr_db
    assert simulated is not None and artifact is not None and abs(simulated - artifact) < 1.0


def test_int8_channels_last_file_has_no_conversions_at_its_ends(export: Export) -> None:
    artifact = export("mobilenet_like", "int8", options={"layout": "nhwc", "io": "int8"})
    kinds = [op.kind for op in operators(artifact)]
    assert kinds[0] in ("PAD", "CONV_2D") and kinds[-1] == "FULLY_CONNECTED"
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(kinds)
    entry = artifact.manifest.metadata["file"]["inputs"][0]
    assert (entry["dtype"], entry["shape"], entry["layout"]) == ("int8", [1, 32, 32, 3], "NHWC")
    interpreter = open_interpreter(str(artifact.entry), 1, "xnnpack")
    details = interpreter.get_input_details()[0]
    assert details["dtype"] is np.int8 and details["shape"].tolist() == [1, 32, 32, 3]


def test_session_over_another_layout_gives_the_models_own(export: Export) -> None:
    plain = export("mobilenet_like", "int8")
    other = export("mobilenet_like", "int8", options={"layout": "nhwc"})
    feeds = plain.golden().inputs[0]
    with plain.open(threads=1) as a, other.open(threads=1) as b:
        np.testing.assert_array_equal(a.run(feeds)["output"], b.run(feeds)["output"])


def test_session_over_int8_ends_takes_and_gives_float(export: Export) -> None:
    artifact = export("mobilenet_like", "int8", options={"layout": "nhwc", "io": "int8"})
    scale = artifact.manifest.metadata["file"]["outputs"][0]["scale"]
    golden = artifact.golden()
    steps = golden.outputs[0]["output"] / np.float32(scale)
    assert golden.inputs[0]["x"].dtype == golden.outputs[0]["output"].dtype == np.float32
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_names_and_order_of_inputs_and_outputs_are_the_models(export: Export) -> None:
    artifact = export("two_inputs_dict_output", "int8")
    interpreter = open_interpreter(str(artifact.entry), 1, "xnnpack")
    signature = interpreter.get_signature_list()["serving_default"]
    assert set(signature["inputs"]) == {"image", "features"}
    assert set(signature["outputs"]) == {"scores", "embedding"}
    feeds = artifact.golden().inputs[0]
    by_name = interpreter.get_signature_runner()(**feeds)
    with artifact.open(threads=1) as session:
        for name, array in session.run(feeds).items():
            np.testing.assert_array_equal(array, by_name[name])


def test_transformer_keeps_its_int64_tokens_and_float_residuals(export: Export) -> None:
    artifact = export("transformer_encoder", "int8")
    assert [spec.dtype for spec in artifact.inputs] == ["int64"]
    interpreter = open_interpreter(str(artifact.entry), 1, "xnnpack")
    assert interpreter.get_input_details()[0]["dtype"] is np.int64
    assert artifact.achieved.macs_fraction("int8") == 1.0
    floats = {layer.reason for layer in artifact.achieved.layers if layer.precision == "float32"}
    assert "transformer residual stream" in floats


@pytest.mark.nightly
def test_dynamic_int8_of_an_lstm_quantizes_every_product(export: Export) -> None:
    artifact = export("lstm_classifier", "int8-dynamic")
    assert artifact.achieved.macs_fraction("int8") == 1.0
    products = [op for op in operators(artifact) if op.kind == "FULLY_CONNECTED"]
    assert products and all(op.inputs[1] is not None and op.inputs[1].dtype == "INT8" for op in products)


def test_excluded_layers_stay_float_in_dynamic_int8_too(export: Export) -> None:
    artifact = export("transformer_encoder", "int8-dynamic", exclude=("fc", "blocks.0.mlp.*"))
    precisions = {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.op == "linear"}
    assert {path for path, precision in precisions.items() if precision == "float32"} == {
        "fc",
        "blocks.0.mlp.0",
        "blocks.0.mlp.2",
    }


def test_int16x8_has_16_bit_activations_and_8_bit_weights_between_float_ends(export: Export) -> None:
    artifact = export("residual_cnn", "int16x8")
    kinds = [op.kind for op in operators(artifact)]
    assert kinds.count("QUANTIZE") == 1 and kinds.count("DEQUANTIZE") == 1
    for op in operators(artifact)[:-1]:
        assert op.outputs[0].dtype == "INT16", op
    weights = [op.inputs[1] for op in operators(artifact) if op.kind == "CONV_2D"]
    assert all(weight is not None and weight.dtype == "INT8" for weight in weights)
    assert artifact.achieved.macs_fraction("int16x8") == 1.0


def test_int16x8_has_the_ranges_of_our_calibration(export: Export) -> None:
    """Extremes of all samples that calibration saw, not a moving average of them, with room for those to come."""
    artifact = export("residual_cnn", "int16x8")
    _, example_inputs = models.residual_cnn()
    seen = [sample for i, sample in enumerate(batches(example_inputs, 8)) if i % 4 != 3]  # the others are held out
    largest = max(float(sample[0].abs().max()) for sample in seen)
    graph = flatbuffer.read(artifact.entry).subgraphs[0]
    scale = next(t.quantization.scale[0] for t in graph.tensors if flatbuffer.type_name(t) == "INT16")
    rounded = 1 + 2**-8  # to bfloat16, where calibration ran in it
    assert largest / rounded <= scale * 32767 <= MOST * largest * rounded


def test_int16x8_leaves_what_calibration_does_not_see_in_float(export: Export) -> None:
    artifact = export("transformer_encoder", "int16x8")
    assert artifact.achieved.macs_fraction("int16x8") == 1.0
    norms = [layer for layer in artifact.achieved.layers if layer.op == "layer_norm"]
    assert all(layer.precision == "float32" for layer in norms)


def test_excluded_layers_stay_float_in_int16x8(export: Export) -> None:
    artifact = export("residual_cnn", "int16x8", exclude=("fc",))
    found = {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.macs}
    assert [path for path, precision in found.items() if precision != "int16x8"] == ["fc"]


@pytest.mark.parametrize("kernels", ["builtin", "reference"])
def test_other_kernels_agree_up_to_rounding(export: Export, kernels: str, tmp_path: Path) -> None:
    artifact = export("mobilenet_like", "int8")
    feeds = artifact.golden().inputs[0]["x"]
    results = []
    for name in ("xnnpack", kernels):
        interpreter = open_interpreter(str(artifact.entry), 1, name)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], feeds)
        interpreter.invoke()
        results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    step = flatbuffer.read(artifact.entry).subgraphs[0]
    scale = next(t.quantization.scale[0] for t in reversed(step.tensors) if flatbuffer.type_name(t) == "INT8")
    assert np.abs(results[0] - results[1]).max() <= 4 * scale


def test_converter_output_is_in_the_log_and_not_on_the_terminal(
    export: Export, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module, example_inputs = models.mlp()
    artifact = deploykit.export(
        module, "android", "fp32", example_inputs=example_inputs, output=tmp_path / "a", profile=False, progress=False
    )
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
    assert "LiteRT-Torch Convert" in (artifact.path / "convert.log").read_text(encoding="utf-8")
