"""`arm-cpu:fastest` with the host forced to be an Arm one: the toolchain's artifact runs in a session of the emulator.

It shows that the choice is made and published with an Arm artifact; not how fast an Arm machine is, nor that a Python
on one exports.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
if not all(map(shutil.which, ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"))):
    pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static", allow_module_level=True)

import torch
from torch import nn

import deploykit
from deploykit.contract.host import Host
from deploykit.pipeline import fastest


def export(output: Path) -> deploykit.Artifact:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    data = [torch.randn(2, 16) for _ in range(8)]
    return deploykit.export(
        model,
        "arm-cpu:fastest",
        "int8",
        example_inputs=(data[0],),
        calibration=data,
        profile=False,
        progress=False,
        output=output,
    )


def test_an_arm_host_gets_the_fastest_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "this_host", lambda: Host("aarch64", ("asimd", "asimddp"), 2, "Linux"))
    monkeypatch.setattr(fastest, "is_native", lambda artifact: True)  # an emulator's time is refused otherwise
    made = export(tmp_path / "model")
    assert made.choice is not None
    assert made.choice.winner == made.target == "arm-cpu:tvm"
    assert made.parity.passed and made.parity.evidence == "emulator"
    assert made.choice.candidates[0].latency_ms is not None
