"""Sessions on tflite-runtime, the predecessor that some boards have.

The real one: its last wheel is built for NumPy 1, so it is fetched with one into a folder of its own, and used by a
Python in which ai-edge-litert cannot be imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import deploykit
from deploykit.testing import models
from deploykit.testing.conformance import batches

pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")

SCRIPT = """
import sys
sys.modules["ai_edge_litert"] = None  # as where it is not installed
import deploykit
artifact = deploykit.load(sys.argv[1])
print(artifact.verify().sqnr_db)
assert "tflite_runtime" in sys.modules and "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tflite-runtime")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}  # it has NumPy 2
    done = subprocess.run(
        [*pip, "--target", str(folder), "tflite-runtime==2.14.0", "numpy<2"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"tflite-runtime cannot be installed for this Python: {done.stderr.strip()[-300:]}")
    return folder


def verified(packages: Path, artifact: deploykit.Artifact) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *filter(None, sys.path)])}
    command = [sys.executable, "-c", SCRIPT, str(artifact.path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def export(precision: str, output: Path, io: str = "float") -> deploykit.Artifact:
    module, example_inputs = models.mobilenet_like()
    return deploykit.export(
        module,
        "android",
        precision,
        example_inputs=example_inputs,
        calibration=batches(example_inputs, 8) if precision == "int8" else None,
        options={"io": io},
        output=output,
        profile=False,
        progress=False,
    )


@pytest.mark.parametrize(("precision", "io", "least_db"), [("int8", "int8", 35.0), ("fp16", "float", 100.0)])
def test_artifacts_verify_on_it(packages: Path, precision: str, io: str, least_db: float, tmp_path: Path) -> None:
    """Its kernels round some int8 sums otherwise: a step here and there."""
    done = verified(packages, export(precision, tmp_path / "a", io))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > least_db


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8"])
def test_what_it_computes_wrongly_is_refused(packages: Path, precision: str, tmp_path: Path) -> None:
    """An int8 file with a float output rounds the input of its last layer at run time."""
    done = verified(packages, export(precision, tmp_path / "a"))
    assert done.returncode != 0
    assert "MissingDependencyError" in done.stderr and "ai-edge-litert" in done.stderr
    assert "wrong results or none" in done.stderr
    assert ('{"io": "int8"}' in done.stderr) == (precision == "int8")
