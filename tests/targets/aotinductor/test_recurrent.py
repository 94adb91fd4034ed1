"""LSTM, GRU and RNN in int8: the compiler has no integer form of them, so their steps are written out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")

import recurrent_cases as recurrent
import torch
from torch import Tensor, nn

import deploykit
from deploykit import pipeline
from deploykit_targets._schemes import recurrent as steps

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: the compiler writes C++")
TARGET = "x86-cpu:aotinductor"
QUICK = "lstm of two layers"


@pytest.mark.parametrize(
    "case", [case if case == QUICK else pytest.param(case, marks=pytest.mark.nightly) for case in recurrent.CASES]
)
def test_every_step_is_int8(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "UNITS", 24)  # the compiler computes one row by up to 16 x 16 without a product
    recurrent.check(recurrent.exported(case, TARGET, tmp_path / case))


@pytest.mark.nightly
def test_a_weight_that_layers_share_is_an_integer_and_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(256, 256)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.layer(x).tanh()
            return x

    data = list(torch.randn(6, 2, 256, generator=torch.Generator().manual_seed(0)))
    artifact = deploykit.export(
        Tied().eval(), TARGET, "int8", example_inputs=(data[0],), calibration=data, output=tmp_path / "a",
        profile=False, progress=False,
    )  # fmt: skip
    assert artifact.achieved.macs_fraction("int8") == 1.0
    assert artifact.entry.stat().st_size < 2 * 256 * 256 + 300_000, "native code, and the weight once"
    assert artifact.parity is not None and artifact.parity.quantization is not None
    assert artifact.parity.sqnr_db == pytest.approx(artifact.parity.quantization.worst.sqnr_db, abs=1.0)


def test_long_sequences_are_refused_with_what_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MOST_STEPS", 5)
    model, data = recurrent.data_of("gru of two layers")
    captured = pipeline.capture(model, example_inputs=data[0])
    run = pipeline.calibrate(captured, data, progress=False)
    found = pipeline.prepare(pipeline.request(TARGET, "int8"), captured, run)
    (layer,) = [layer for layer in found.layers if layer.kind == "gru"]
    assert layer.precision == "float" and "up to 5 steps" in layer.reason and "these are 6: shorten" in layer.reason
    assert 'target="x86-cpu" (LSTMs of any length) or "x86-cpu:tvm"' in layer.reason
