"""Two processes over gloo: equal gradients, parameters, ranges, scales, channels, masks, projections; one artifact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import deploykit

SCRIPT = Path(__file__).with_name("ddp.py")


def ran(folder: Path, what: str) -> list[Any]:
    """Train on two processes; every process has taken the same steps. The states of the callbacks, by process."""
    command = [sys.executable, SCRIPT, folder, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("gradients", "parameters"):
        first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name
        assert all(bool(each.any()) for each in first)
    assert [torch.load(folder / f"steps-{rank}.pt") for rank in (0, 1)] == [20, 20]
    return [torch.load(folder / f"states-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.nightly
def test_two_processes_stay_equal(tmp_path: Path) -> None:
    (first, _), (second, _) = ran(tmp_path, "qat")
    assert torch.equal(first["table"], second["table"])
    scales = [each["learned"]["scales"] for each in (first, second)]
    assert torch.equal(*scales) and bool(scales[0].any())
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    keys = set(torch.load(checkpoint, weights_only=True)["state_dict"])
    assert keys == {f"net.{name}" for name in ("0.weight", "0.bias", "4.weight", "4.bias", *BATCH_NORM)}
    assert deploykit.load(tmp_path / "out" / "x86-cpu").parity.sqnr_db >= 60


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["structured", "2:4"])
def test_two_processes_prune_and_distil_alike(tmp_path: Path, kind: str) -> None:
    states = ran(tmp_path, kind)
    assert states[0][0] == states[1][0] and any(states[0][0].values())  # channels that went, layers with masks
    weights, others = (torch.load(tmp_path / f"parameters-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(weights, others, strict=True))
    if kind == "2:4":
        assert bool(((weights[4].view(10, -1, 4) == 0).sum(2) >= 2).all())
    projections, second = (each[1] for each in states)
    assert projections.keys() == second.keys() and projections
    assert all(torch.equal(projections[name], second[name]) for name in projections)


BATCH_NORM = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
