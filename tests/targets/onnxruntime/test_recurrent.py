"""GRU and RNN in int8: ONNX Runtime has an integer kernel of LSTMs alone, so the steps of others are written out."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

import onnx
import recurrent_cases as recurrent
import torch
from torch import nn

import deploykit
from deploykit_targets._schemes import recurrent as steps
from deploykit_targets.onnxruntime.convert import _PAYS_FROM

WRITTEN_OUT = [case for case in recurrent.CASES if not case.startswith("lstm")]


def operators(artifact: deploykit.Artifact) -> set[str]:
    found = {node.op_type for node in onnx.load(artifact.entry).graph.node}
    return found & {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}


@pytest.mark.parametrize("device", ["x86-cpu", "x86-cpu-avx2"])
@pytest.mark.parametrize("case", WRITTEN_OUT)
def test_every_step_is_int8(case: str, device: str, tmp_path: Path) -> None:
    artifact = recurrent.exported(case, device, tmp_path / case)
    recurrent.check(artifact)
    assert not operators(artifact)


def test_an_lstm_keeps_its_kernel(tmp_path: Path) -> None:
    artifact = recurrent.exported("lstm of two layers", "x86-cpu", tmp_path / "a")
    assert operators(artifact) == {"DynamicQuantizeLSTM"} and not artifact.achieved.notes


@pytest.mark.parametrize(("units", "rows", "slower"), [(16, 1, True), (256, 1, True), (256, 3, False), (400, 1, False)])
def test_a_layer_that_is_slower_than_its_float_operator_is_named(units: int, rows: int, slower: bool) -> None:
    captured = deploykit.pipeline.capture(nn.GRU(4, units), example_inputs=(torch.zeros(2, rows, 4),))
    run = deploykit.pipeline.calibrate(captured, [torch.randn(2, rows, 4)], progress=False)
    prepared = deploykit.pipeline.prepare(deploykit.pipeline.request("x86-cpu", "int8"), captured, run)
    said = steps.notes_on_steps(prepared, "it costs time", pays_from=_PAYS_FROM)
    assert "written out step by step for int8 (2 steps); it costs time" in said[0]
    assert (len(said) == 2) is slower
    assert not slower or (
        f"by {3 * units * units * rows:,} weights and rows" in said[1] and "exclude=['gru']" in said[1]
    )
    assert len(steps.notes_on_steps(prepared, "it costs time")) == 1


class Mixed(nn.Module):
    """An LSTM with its kernel, a GRU that is written out above it, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.LSTM(12, 16, batch_first=True), nn.GRU(16, 16, batch_first=True)
        self.twice, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.above(self.below(x)[0])[0][:, -1]
        result: torch.Tensor = self.head(self.twice(self.twice(found).relu()).relu())
        return result


@pytest.mark.parametrize("exclude", [(), ("twice",), ("above", "head")], ids=str)
def test_products_beside_an_lstm_keep_their_weights_and_biases(exclude: tuple[str, ...], tmp_path: Path) -> None:
    """ONNX Runtime's quantizer, which is asked for the LSTM alone, turned round and renamed weights of others."""
    torch.manual_seed(0)
    net, data = Mixed().eval(), [torch.randn(1, 6, 12) for _ in range(8)]
    artifact = deploykit.export(
        net, "x86-cpu", "int8", example_inputs=(data[0],), calibration=data, exclude=exclude, min_placement=0.3,
        output=tmp_path / "a", profile=False, progress=False,
    )  # fmt: skip
    assert artifact.parity is not None and artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db > 30.0
    graph = onnx.load(artifact.entry).graph
    operators = {node.op_type for node in graph.node}
    assert operators >= {"DynamicQuantizeLSTM", "Gemm"} and "LSTM" not in operators
    assert not [value for node in graph.node for value in node.output if "Transposed" in value]
    assert not [item for node in graph.node if node.op_type == "Gemm" for item in node.attribute if item.name == "beta"]


def test_an_excluded_gru_keeps_its_operator(tmp_path: Path) -> None:
    artifact = recurrent.exported("gru of two layers", "x86-cpu", tmp_path / "a", exclude=["layers"])
    assert operators(artifact) == {"GRU"} and not artifact.achieved.notes


def test_long_sequences_are_refused_with_what_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MOST_STEPS", 5)
    with pytest.raises(deploykit.PlacementError, match=r"up to 5 steps .*these are 6: shorten") as caught:
        recurrent.exported("gru of two layers", "x86-cpu", tmp_path / "a")
    assert 'target="x86-cpu:tvm" (any static length)' in str(caught.value)


def test_tune_keeps_a_recipe_that_an_export_follows(tmp_path: Path) -> None:
    model, data = recurrent.data_of("gru of two layers")
    asked = {"example_inputs": data[0], "calibration": data, "progress": False, "profile": False}
    plan = deploykit.tune(model, "x86-cpu", "int8", min_sqnr_db=30.0, output=tmp_path / "a", **asked)
    assert plan.met and plan.best.achieved.macs_fraction("int8") >= 0.8
    again = deploykit.export(model, "x86-cpu", recipe=plan.recipe, output=tmp_path / "b", **asked)
    assert again.status == "verified"


def test_batches_may_be_dynamic_and_train(tmp_path: Path) -> None:
    net, data = recurrent.Tagger(nn.GRU).eval(), recurrent.sequences(6)
    with deploykit.qat(net, example_inputs=(data[0],), calibration=data, progress=False) as trained:
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        trained.model(torch.cat(data)).square().sum().backward()
        optimizer.step()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.layers.parameters())
        artifact = trained.export(output=tmp_path / "a", profile=False, progress=False, dynamic_batch=True)
        want = trained.model(torch.cat(data)).detach()
    assert artifact.achieved.as_asked_fraction == 1.0
    with artifact.open() as session:
        (found,) = session.run({artifact.inputs[0].name: torch.cat(data).numpy()}).values()
    assert (torch.from_numpy(found) - want).abs().max() < 0.02 * want.abs().max()
