"""The library opened by an Arm Python, as on a board that has one; under emulation, in the arm64 root."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import DeviceError, MissingDependencyError
from deploykit.places.arm_root import ArmRoot, arm_root

ROOT = Path(__file__).resolve().parents[4]
UNIT = 0.05001  # of the quantised result, and float32's own error
SCRIPT = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
facts = json.loads(Path(sys.argv[1]).read_text())
sys.path[:0] = facts["paths"]
import numpy as np
from deploykit.contract.errors import DeploykitError
from deploykit.artifact.manifest import Manifest
from deploykit.contract.tensors import TensorSpec
from deploykit_targets.tvm.session import NativeSession
inputs, outputs = ((TensorSpec(name, tuple(facts["shape"]), "float32"),) for name in (facts["name"], "y"))
manifest = SimpleNamespace(metadata={"library": facts["library"]})
manifest.recorded = lambda kind, key=None: Manifest.recorded(manifest, kind, key)
artifact = SimpleNamespace(path=Path(facts["folder"]), manifest=manifest, inputs=inputs, outputs=outputs,
                           achieved=SimpleNamespace(module_paths={}))
try:
    with NativeSession(artifact, 2) as session:
        np.save(facts["output"], session.run({facts["name"]: np.load(facts["input"])})["y"])
        print(len(session.op_times({facts["name"]: np.load(facts["input"])}, runs=1)))
except DeploykitError as error:
    print(type(error).__name__, error.message)
"""


@pytest.fixture(scope="module")
def root() -> ArmRoot:
    wheels = tuple(f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "msgspec"))
    try:
        return arm_root(wheels)
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(error.message)


@pytest.fixture
def opened(compiled: Any, root: ArmRoot, tmp_path: Path) -> Any:
    """(device, CPU) -> what the emulated Python printed, and the outputs where there are any."""

    def run(device: str, cpu: str) -> tuple[str, np.ndarray | None, Any]:
        made = compiled(device)
        ((name, x),) = made.feeds.items()
        np.save(tmp_path / "x.npy", x)
        facts = {
            "paths": [str(ROOT), str(ROOT / "calibration"), str(ROOT / "targets")],
            "folder": str(made.folder),
            "library": made.library.metadata,
            "name": name,
            "shape": list(x.shape),
            "input": str(tmp_path / "x.npy"),
            "output": str(tmp_path / "y.npy"),
        }
        (tmp_path / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
        done = root.run_python(cpu, tmp_path / "script.py", tmp_path / "facts.json")
        assert done.returncode == 0, done.stderr
        output = tmp_path / "y.npy"
        return done.stdout.strip(), np.load(output) if output.exists() else None, made

    return run


@pytest.mark.parametrize(("device", "cpu"), [("raspberry-pi-5", "cortex-a76"), ("raspberry-pi-4", "cortex-a72")])
def test_the_library_in_an_arm_python(device: str, cpu: str, opened: Any) -> None:
    printed, outputs, made = opened(device, cpu)
    assert printed == "3"
    assert np.abs(outputs - made.expected).max() <= UNIT


def test_a_cpu_without_dot_products(opened: Any) -> None:
    printed, outputs, _ = opened("raspberry-pi-5", "cortex-a72")
    assert printed.startswith("DeviceError") and "dotprod" in printed
    assert outputs is None
