"""FSDP2 over gloo: a sharded root trains as one process does, and is exported whole; sharded layers are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("fsdp.py")


@pytest.mark.nightly
def test_a_sharded_root_trains_as_one_process_does(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        sharded, alone = torch.load(tmp_path / f"parameters-{rank}.pt")
        for own, wanted in zip(sharded, alone, strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)  # the mean over halves of a batch
        assert (tmp_path / f"reference-{rank}.txt").read_text() == "trained graph"
        assert "0.weight is sharded" in (tmp_path / f"refused-{rank}.txt").read_text()
