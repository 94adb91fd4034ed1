"""An exported artifact on a device that has the runtime and nothing of PyTorch, behind a real sshd."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import deploykit
from deploykit.contract.errors import DeviceError
from deploykit.judge.profiling import Effort
from deploykit.testing.loopback import ADDRESS, Loopback
from deploykit_fleet.devices import Device, Entry

ABSENT = "torch onnx onnxscript torchvision transformers lightning openvino".split()


def test_a_runtime_is_enough_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    data = [torch.randn(1, 16) for _ in range(16)]
    artifact = deploykit.export(
        model,
        target="x86-cpu",
        precision="int8",
        example_inputs=(data[0],),
        calibration=data,
        output=tmp_path / "model",
        profile=False,
        progress=False,
    )
    for name in ABSENT:  # what is found first, and cannot be imported
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise ImportError('{name} is not on this board')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "absent"), *filter(None, sys.path)]))
    try:
        board = Loopback(tmp_path / "sshd")
    except DeviceError as error:
        pytest.skip(error.message)
    monkeypatch.setenv("PATH", str(board.write_client(tmp_path / "bin/ssh").parent), prepend=os.pathsep)
    device = Device("lab", Entry(ADDRESS, python=sys.executable))
    try:
        there = device.verify(artifact)
        assert there.sqnr_db > 60 or there.max_abs == 0
        found = device.profile(artifact, effort=Effort(seconds=0.05))
        assert found.runs >= 20 and found.op_times and found.size_bytes == artifact.size_bytes
        assert device.evidence(artifact) is artifact.plugin().evidence(artifact)
    finally:
        device.close()
        board.kill()
