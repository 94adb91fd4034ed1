"""What lies between int8 layers is float16 where that moves fewer bytes, and recurrent layers are int8 step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploykit import pipeline
from deploykit.contract.decibels import sqnr_db
from deploykit_calibration.observe import CalibrationRun, extended
from deploykit_calibration.prepared import Prepared
from deploykit_targets._onnx.between import float_name, simulation_of
from deploykit_targets._onnx.explicit import lower_explicit
from deploykit_targets._onnx.lint import load_rules
from deploykit_targets._onnx.reference import ReferenceSession
from deploykit_targets._schemes import recurrent


class Gated(nn.Module):
    """A convolution, a gate that is computed of all positions, and one more convolution."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 16, 3)
        self.first.weight.data.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = self.last(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())
        return found


class Recurrent(nn.Module):
    """Two layers in both directions, and a classifier."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.layers = kind(16, 32, batch_first=True, **options)
        self.head = nn.Linear(32 * (1 + self.layers.bidirectional), 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(x)[0][:, -1])
        return found


def prepared(
    model: nn.Module, *shape: int, precision: str = "int8", target: str = "jetson-orin", spread: float = 1.0
) -> Prepared:
    torch.manual_seed(0)
    batches = [(spread * torch.randn(shape),) for _ in range(6)]
    captured = pipeline.capture(model.eval(), example_inputs=batches[0])
    run = pipeline.calibrate(captured, batches, progress=False)
    return pipeline.prepare(pipeline.request(target, precision), captured, run)


def seeded(make: Any, *arguments: Any, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    made: nn.Module = make(*arguments, **options)
    return made


def lowered(found: Prepared) -> onnx.ModelProto:
    return lower_explicit(found, load_rules("tensorrt"), opset=19).model


def test_it_is_float16_beside_gates_and_products_and_float32_where_that_moves_nothing_less() -> None:
    plain = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    assert float_name(prepared(nn.Sequential(*plain, *head), 1, 16, 20, 20)) == "float32"
    assert float_name(prepared(seeded(Gated), 1, 16, 20, 20)) == "float16"
    assert float_name(prepared(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), 4, 32)) == "float16"
    up = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(16, 16, 3))
    assert float_name(prepared(up, 1, 16, 12, 12)) == "float16", "what is kept in float writes the type of the file"


@pytest.mark.parametrize("target", ["jetson-xavier", "amd-mi300x"])
def test_builders_that_take_no_types_from_the_file_get_float32(target: str) -> None:
    assert float_name(prepared(seeded(Gated), 1, 16, 20, 20, target=target)) == "float32"


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-6])
def test_the_simulated_graph_rounds_as_the_file_does(scale: float) -> None:
    """Also where scales of weights are below the normal numbers of float16 (1e-4), and next to its least (1e-6)."""
    found = prepared(seeded(Gated, scale), 1, 16, 20, 20, precision="mixed")
    simulated, exact, model = simulation_of(found), found.simulation, lowered(found)
    assert simulated is not None and exact is not None
    session = ReferenceSession(found.captured.inputs, found.captured.outputs, model.SerializeToString())
    feeds = {spec.name: np.random.default_rng(0).normal(size=(1, 16, 20, 20)).astype("f4") for spec in session.inputs}
    got, half, single = (next(iter(each.run(feeds).values())) for each in (session, simulated, exact))

    def db(want: np.ndarray) -> float:
        return float(sqnr_db(float((want.astype("f8") ** 2).sum()), float(((want - got).astype("f8") ** 2).sum())))

    assert db(half) > 45
    assert db(half) >= db(single) - 3, "at 70 dB sums in another order show"


def test_a_quantization_by_less_than_float16_divides_by_stays_float32() -> None:
    found = prepared(seeded(Gated), 1, 16, 20, 20, precision="mixed", spread=1e-4)
    model = lowered(found)
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    divisors = [scales[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {scale.dtype for scale in divisors} == {np.dtype("f2"), np.dtype("f4")}
    with np.errstate(over="raise"):
        assert all(np.isfinite(np.array(1, scale.dtype) / scale) for scale in divisors)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}], ids=["stacked", "both directions"])
def test_recurrent_layers_are_int8_in_every_step(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    found = prepared(seeded(Recurrent, kind, **options), 2, 5, 16)
    macs = {"int8": 0, "float": 0}
    for layer in found.layers:
        macs[layer.precision] += layer.macs
    assert macs["int8"] > 0.98 * sum(macs.values()), "all but the classifier"
    assert {node.op_type for node in lowered(found).graph.node}.isdisjoint({"LSTM", "GRU"})
    simulated = simulation_of(found)
    assert simulated is not None and simulated.rounds


def test_gates_are_not_rounded_for_the_sum_of_both_products() -> None:
    found = prepared(seeded(Recurrent, nn.LSTM), 2, 5, 16)
    sums = [layer for layer in found.layers if layer.kind == "add" and layer.module_path == "layers"]
    assert sums and {layer.precision for layer in sums} == {"float"}


@pytest.mark.parametrize(("precision", "most"), [("fp16", 256), ("int8", 9)], ids=["fp16", "too long"])
def test_in_float_and_where_they_are_long_they_stay_loops(
    precision: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "MOST_STEPS", most)
    found = prepared(seeded(Recurrent, nn.GRU, num_layers=2), 2, 5, 16, precision=precision)
    (layer,) = [layer for layer in found.layers if layer.kind == "gru"]
    assert layer.precision == "float"
    assert precision == "fp16" or "written out" in layer.reason


def test_steps_have_statistics_of_the_samples_that_calibration_kept() -> None:
    model = seeded(Recurrent, nn.LSTM, num_layers=2)
    batches = [(torch.randn(2, 5, 16),) for _ in range(4)]
    captured = pipeline.capture(model.eval(), example_inputs=batches[0])
    run = pipeline.calibrate(captured, batches, progress=False)
    form = recurrent.written_out(captured, pipeline.request("jetson-orin", "int8"))
    table = extended(run, form)
    assert set(run.table.statistics) < set(table.statistics)
    assert all(table.statistics[name] == known for name, known in run.table.statistics.items())
    assert extended(CalibrationRun(run.table), form) == run.table, "a finished table has no samples"
