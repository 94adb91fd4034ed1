"""LSTM, GRU and RNN in int8: OpenVINO's own operators are float, so their steps are written out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

import recurrent_cases as recurrent
import torch
from torch import nn

import deploykit
from deploykit_targets._schemes import recurrent as steps

TARGET = "x86-cpu-avx2:openvino"


def operators(artifact: deploykit.Artifact) -> set[str]:
    return set(re.findall(r' type="(LSTM\w*|GRU\w*|RNN\w*)"', artifact.entry.read_text(encoding="utf-8")))


@pytest.mark.parametrize("case", recurrent.CASES)
def test_every_step_is_int8(case: str, tmp_path: Path) -> None:
    artifact = recurrent.exported(case, TARGET, tmp_path / case)
    recurrent.check(artifact)
    assert not operators(artifact)


def test_wide_weights_are_exact_on_every_cpu(tmp_path: Path) -> None:
    recurrent.check(recurrent.exported("lstm of two layers", "x86-cpu:openvino", tmp_path / "a"))


def test_batches_may_be_dynamic(tmp_path: Path) -> None:
    net, data = recurrent.Tagger(nn.GRU).eval(), recurrent.sequences(6)
    artifact = deploykit.export(
        net, TARGET, "int8", example_inputs=(data[0],), calibration=data, dynamic_batch=True,
        output=tmp_path / "a", profile=False, progress=False,
    )  # fmt: skip
    assert artifact.achieved.macs_fraction("int8") == 1.0
    several = torch.cat(data)
    with artifact.open() as session, torch.no_grad():
        (found,) = session.run({artifact.inputs[0].name: several.numpy()}).values()
        assert (torch.from_numpy(found) - net(several)).abs().max() < 0.05 * net(several).abs().max()


def test_an_excluded_layer_keeps_its_operator(tmp_path: Path) -> None:
    artifact = recurrent.exported("gru of two layers", TARGET, tmp_path / "a", exclude=["layers"])
    assert operators(artifact) == {"GRUSequence"} and not artifact.achieved.notes
    assert {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.macs} == {
        "layers": "float32",
        "head": "int8",
    }


def test_float_precisions_keep_their_operator(tmp_path: Path) -> None:
    model, data = recurrent.data_of("lstm of two layers")
    artifact = deploykit.export(
        model, TARGET, "fp32", example_inputs=data[0], output=tmp_path / "a", profile=False, progress=False
    )
    assert operators(artifact) == {"LSTMSequence"} and not artifact.achieved.notes


def test_long_sequences_are_refused_with_what_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MOST_STEPS", 5)
    with pytest.raises(deploykit.PlacementError, match=r"up to 5 steps .*these are 6: shorten") as caught:
        recurrent.exported("gru of two layers", TARGET, tmp_path / "a")
    assert 'target="x86-cpu" (LSTMs of any length) or "x86-cpu:tvm"' in str(caught.value)


def test_a_finished_table_has_the_ranges_of_the_steps(tmp_path: Path) -> None:
    """From its file, merged with another, and beside one that was written before tables had them."""
    net, data = recurrent.Tagger(nn.LSTM).eval(), recurrent.sequences(12)
    parts, shown = (data[:6], data[6:]), {"example_inputs": (data[0],), "progress": False}
    tables = [deploykit.calibrate(net, part, **shown) for part in parts]
    saved = tables[0].merge(tables[1]).save(tmp_path / "net.calibration")
    asked = {**shown, "profile": False}
    artifact = deploykit.export(net, TARGET, "int8", calibration=saved, output=tmp_path / "a", **asked)
    assert artifact.achieved.as_asked_fraction == 1.0 and not operators(artifact)
    assert artifact.parity is not None and artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db > 35.0

    captured = deploykit.pipeline.capture(net, example_inputs=(data[0],))
    before = deploykit.pipeline.calibrate(captured, data[:6], progress=False).table
    assert before.statistics.keys() < tables[0].statistics.keys()
    with pytest.raises(deploykit.PlacementError, match="a finished table has of the steps"):
        deploykit.export(net, TARGET, "int8", calibration=before, output=tmp_path / "c", **asked)
    assert before.merge(tables[1]).statistics.keys() == tables[0].statistics.keys()


def test_tune_keeps_a_recipe_that_an_export_follows(tmp_path: Path) -> None:
    model, data = recurrent.data_of("gru of two layers", 12)
    asked = {"example_inputs": data[0], "calibration": data, "progress": False, "profile": False}
    plan = deploykit.tune(model, TARGET, "int8", min_sqnr_db=30.0, output=tmp_path / "a", **asked)
    assert plan.met and plan.best.achieved.macs_fraction("int8") >= 0.8
    again = deploykit.export(model, TARGET, recipe=plan.recipe, output=tmp_path / "b", **asked)
    assert again.status == "verified" and again.parity is not None and plan.best.parity is not None
    assert again.parity.sqnr_db == plan.best.parity.sqnr_db


def test_steps_are_scored_and_trained(tmp_path: Path) -> None:
    net, data = recurrent.Tagger(nn.LSTM).eval(), recurrent.sequences(6)
    ranked = deploykit.sensitivity(net, TARGET, data, example_inputs=(data[0],), progress=False)
    assert {"layers", "head"} == {score.module_path for score in ranked.layers}
    with deploykit.qat(net, target=TARGET, example_inputs=(data[0],), calibration=data, progress=False) as trained:
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        trained.model(torch.cat(data)).square().sum().backward()
        optimizer.step()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.layers.parameters())
        artifact = trained.export(output=tmp_path / "a", profile=False, progress=False)
    assert artifact.achieved.as_asked_fraction == 1.0
    assert artifact.parity is not None and artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db > 60.0
