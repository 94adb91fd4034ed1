"""Two processes over gloo: equal gradients, parameters and ranges, and one artifact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deploykit

SCRIPT = Path(__file__).with_name("ddp.py")


@pytest.mark.nightly
def test_two_processes_stay_equal(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("gradients", "parameters"):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name
        assert all(bool(each.any()) for each in first)
    assert [torch.load(tmp_path / f"steps-{rank}.pt") for rank in (0, 1)] == [20, 20]
    first, second = (torch.load(tmp_path / f"ranges-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["table"], second["table"])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    keys = set(torch.load(checkpoint, weights_only=True)["state_dict"])
    assert keys == {f"net.{name}" for name in ("0.weight", "0.bias", "4.weight", "4.bias", *BATCH_NORM)}
    assert deploykit.load(tmp_path / "out" / "x86-cpu").parity.sqnr_db >= 60


BATCH_NORM = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
