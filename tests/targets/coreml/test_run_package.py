"""`deploykit run model.mlpackage`: a package made by anyone, evaluated on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import deploykit
from deploykit.testing import models


def test_a_package_runs_by_itself(tmp_path: Path) -> None:
    model, example = models.mlp()
    artifact = deploykit.export(
        model, "coreml", "fp32", example_inputs=example, profile=False, progress=False, output=tmp_path / "artifact"
    )
    package = next(artifact.path.glob("*.mlpackage")).rename(tmp_path / "by_others.mlpackage")
    np.save(tmp_path / "x.npy", example[0].numpy())
    command = [sys.executable, "-m", "deploykit", "run", str(package), "-i", "x.npy", "-o", "y.npz", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["runs"] == 1
    with np.load(tmp_path / "y.npz") as outputs:
        expected = model(*example).detach().numpy()
        np.testing.assert_allclose(outputs["output"], expected, rtol=1e-5, atol=1e-6)


def test_a_missing_package_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploykit", "run", "no.mlpackage", "-i", "x.npy", "-o", "y.npz"]
    np.save(tmp_path / "x.npy", np.zeros(1, np.float32))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 9 and "no.mlpackage" in done.stderr
