"""LSTM, GRU and RNN in int8: Core ML's own layers are float, so their steps are written out."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("coremltools", reason="coremltools is not installed")

import recurrent_cases as recurrent

import deploykit
from deploykit import pipeline
from deploykit_targets._schemes import recurrent as steps

TARGET = "iphone-15"
QUICK = "lstm of both directions"


@pytest.mark.parametrize(
    "case", [case if case == QUICK else pytest.param(case, marks=pytest.mark.nightly) for case in recurrent.CASES]
)
def test_every_step_is_int8(case: str, tmp_path: Path) -> None:
    artifact = recurrent.exported(case, TARGET, tmp_path / case)
    recurrent.check(artifact)
    assert not {"lstm", "gru", "rnn", "while_loop"} & set(artifact.manifest.metadata["ops"])


def test_an_excluded_lstm_stays_native(tmp_path: Path) -> None:
    artifact = recurrent.exported("lstm of two layers", TARGET, tmp_path / "a", exclude=["layers"])
    assert artifact.manifest.metadata["ops"]["lstm"] == 2
    assert {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.macs} == {
        "layers": "float16",
        "head": "int8",
    }


def test_long_sequences_are_refused_with_length_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MOST_STEPS", 5)
    model, data = recurrent.data_of("gru of two layers")
    captured = pipeline.capture(model, example_inputs=data[0])
    run = pipeline.calibrate(captured, data, progress=False)
    found = pipeline.prepare(pipeline.request(TARGET, "int8"), captured, run)
    (layer,) = [layer for layer in found.layers if layer.kind == "gru"]
    assert layer.precision == "float" and layer.reason.endswith('shorten the sequence, or take precision="fp16"')


def test_a_native_lstm_takes_and_returns_states(tmp_path: Path) -> None:
    model, data = recurrent.data_of("lstm of both directions")
    artifact = deploykit.export(
        model, TARGET, "fp16", example_inputs=data[0], output=tmp_path / "a", profile=False, progress=False
    )
    assert artifact.manifest.metadata["ops"]["lstm"] == 1 and not any("step by" in n for n in artifact.achieved.notes)
    assert artifact.parity is not None and artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db > 55.0


@pytest.mark.nightly
def test_tune_reaches_30_db(tmp_path: Path) -> None:
    model, data = recurrent.data_of("gru of two layers", 24)
    plan = deploykit.tune(
        model, TARGET, "int8", example_inputs=data[0], calibration=data, min_sqnr_db=30.0, output=tmp_path / "a",
        progress=False,
    )  # fmt: skip
    assert plan.met and plan.best.achieved.macs_fraction("int8") >= 0.8
