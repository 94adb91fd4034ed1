"""Lowering whole models: numbers, names, metadata, dynamic batch, determinism, refusals."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploykit.capture import CapturedModel, capture
from deploykit.contract.errors import ConversionError
from deploykit.testing.models import ZOO
from deploykit_targets._onnx.check import check
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.writer import MODULE_PATH

sys.path.insert(0, str(Path(__file__).parent))
from lowering import flat, run_onnx, sqnr_db


@cache
def zoo_model(name: str, *, dynamic_batch: bool = False) -> CapturedModel:
    model, example = ZOO[name]()
    return capture(model, example_inputs=example, dynamic_batch=dynamic_batch)


def outputs_of(captured: CapturedModel, *args: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [tensor.numpy() for tensor in captured.graph_module(*args)]


@pytest.mark.parametrize("name", ZOO)
def test_model_equals_pytorch(name: str) -> None:
    captured = zoo_model(name)
    log: list[str] = []
    model = to_onnx(captured, log=log)
    assert [value.name for value in model.graph.input] == [spec.name for spec in captured.inputs]
    assert [value.name for value in model.graph.output] == [spec.name for spec in captured.outputs]
    assert check(model) == ()
    assert log == []  # nothing was left to PyTorch's exporter
    for want, got in zip(
        outputs_of(captured, *captured.example_inputs), run_onnx(model, *captured.example_inputs), strict=True
    ):
        assert sqnr_db(want, got) > 110  # float32 rounding


@pytest.mark.parametrize("name", ZOO)
def test_dynamic_batch_takes_other_sizes(name: str) -> None:
    captured = zoo_model(name, dynamic_batch=True)
    model = to_onnx(captured)
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input)
    args = [torch.cat([tensor] * 3) for tensor in captured.example_inputs]
    for want, got in zip(outputs_of(captured, *args), run_onnx(model, *args), strict=True):
        assert sqnr_db(want, got) > 110


def test_static_shapes_need_no_shape_arithmetic() -> None:
    written = {node.op_type for node in to_onnx(zoo_model("transformer_encoder", dynamic_batch=True)).graph.node}
    assert not written & {"Shape", "Expand", "Cast", "ConstantOfShape", "Identity"}


def test_nodes_are_named_as_captured_and_know_their_module() -> None:
    captured = zoo_model("residual_cnn")
    model = to_onnx(captured)
    convolutions = {node.name: node for node in model.graph.node if node.op_type == "Conv"}
    assert set(convolutions) <= {node.name for node in captured.graph_module.graph.nodes}
    for name, node in convolutions.items():
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        assert metadata[MODULE_PATH] == captured.origins[name].module_path


def test_weights_keep_their_names() -> None:
    captured = zoo_model("mlp")
    stored = {tensor.name for tensor in to_onnx(captured).graph.initializer}
    attributes = {str(node.target) for node in captured.graph_module.graph.nodes if node.op == "get_attr"}
    assert attributes <= stored


_DIGEST = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_lower import zoo_model
from deploykit_targets._onnx.lower import to_onnx
print(hashlib.sha256(to_onnx(zoo_model("transformer_encoder")).SerializeToString(deterministic=True)).hexdigest())
"""


def test_same_model_gives_same_bytes_in_another_process() -> None:
    model = to_onnx(zoo_model("transformer_encoder"))
    here = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    command = [sys.executable, "-W", "ignore", "-c", _DIGEST, str(Path(__file__).parent)]
    there = subprocess.run(command, check=True, capture_output=True, text=True, env=_other_hash_seed())
    assert there.stdout.split()[-1] == here


def _other_hash_seed() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": ":".join(filter(None, sys.path))}


class Passing(nn.Module):
    """Returns an input, a constant, and one result twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> Any:
        y = x + 1
        return x.clone(), self.table.clone(), y, y


def test_outputs_that_are_inputs_constants_or_the_same_value() -> None:
    x = torch.randn(2, 3)
    model = to_onnx(flat(Passing(), x))
    onnx.checker.check_model(model)
    got = run_onnx(model, x)
    for want, have in zip([x, torch.arange(3.0), x + 1, x + 1], got, strict=True):
        assert np.array_equal(want.numpy(), have)


class Tied(nn.Module):
    """An embedding whose table is also the last layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.embedding(ids))
        return result


def test_tied_weights_are_stored_once() -> None:
    ids = torch.tensor([[1, 4, 2]])
    model = Tied()
    lowered = to_onnx(flat(model, ids))
    assert sum(len(tensor.raw_data) == 50 * 8 * 4 for tensor in lowered.graph.initializer) == 1
    with torch.no_grad():
        assert sqnr_db(model(ids).numpy(), run_onnx(lowered, ids)[0]) > 110


def test_refusal_names_operator_module_and_line() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spectrum = Spectrum()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.spectrum(x) * 2
            return result

    x = torch.eye(3)
    captured = capture(Outer(), example_inputs=(x,))
    with pytest.raises(ConversionError) as caught:
        to_onnx(captured)
    message = str(caught.value)
    assert "eigh" in message and "spectrum" in message and "test_lower.py" in message and "->" in message


def test_opset_out_of_range_is_refused() -> None:
    with pytest.raises(ConversionError, match="18 to 22"):
        to_onnx(zoo_model("mlp"), opset=13)


def test_exporter_noise_goes_into_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    class Unfold(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.unfold(x, 3)

    to_onnx(flat(Unfold(), torch.randn(1, 2, 6, 6)), log=[])
    assert capfd.readouterr() == ("", "")


class Spectrum(nn.Module):
    """Complex numbers inside, real ones at both ends."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).abs()


def test_complex_numbers_inside_a_model_are_lowered_as_such() -> None:
    captured = capture(Spectrum(), example_inputs=(torch.randn(2, 8),))
    (got,) = run_onnx(to_onnx(captured), *captured.example_inputs)
    (want,) = outputs_of(captured, *captured.example_inputs)
    assert got.shape == want.shape and sqnr_db(want, got) > 100


class Decomposition(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


def test_what_the_exporter_refuses_is_said_in_a_line_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    captured = capture(Decomposition(), example_inputs=(torch.randn(4, 4),))
    with pytest.raises(ConversionError, match=r"linalg_svd.*test_lower\.py.*cannot be written as ONNX") as caught:
        to_onnx(captured)
    assert "\x1b" not in caught.value.message and "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")
