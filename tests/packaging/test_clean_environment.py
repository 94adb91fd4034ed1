"""The core and a runtime extra, each installed into an environment of its own that has no PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import deploykit
from deploykit.testing import models
from deploykit.testing.conformance import batches

VENDORS = {"torch", "onnx", "onnxscript", "onnxruntime", "openvino", "coremltools", "litert-torch", "ai-edge-litert"}


@pytest.fixture(scope="module")
def core(clean_environment: Callable[..., object]) -> object:
    return clean_environment("")


@pytest.fixture(scope="module")
def runtime(clean_environment: Callable[..., object]) -> object:
    """With the oldest versions that the metadata admits; the newest are those of this process."""
    lowest = sys.version_info < (3, 13)  # newer Pythons have no wheels of such old packages
    return clean_environment("onnxruntime-runtime", lowest=lowest)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    """An int8 artifact, made here where PyTorch is."""
    pytest.importorskip("torch", reason="exporting needs PyTorch")
    pytest.importorskip("onnxruntime", reason="the ONNX Runtime target is not installed")
    model, example_inputs = models.residual_cnn()
    return deploykit.export(
        model,
        target="x86-cpu",
        precision="int8",
        example_inputs=example_inputs,
        calibration=batches(example_inputs),
        profile=False,
        progress=False,
        output=tmp_path_factory.mktemp("made") / "artifact",
    )


def test_core_installs_no_vendor_runtime(core) -> None:
    assert not core.distributions & VENDORS


def test_core_imports_and_lists_targets(core, wheel: Path) -> None:
    assert core.run("-c", "import deploykit, deploykit_calibration, deploykit_targets; print(deploykit.__version__)")
    listed = {target["name"]: target for target in core.deploykit("targets")["targets"]}
    assert not listed["x86-cpu"]["can_run"]
    assert listed["x86-cpu"]["run_command"] == f'pip install "{wheel}[onnxruntime-runtime]"'


def test_core_says_what_to_install_for_an_artifact(core, artifact: deploykit.Artifact, wheel: Path) -> None:
    done = core.run("-m", "deploykit", "verify", str(artifact.path), check=False)
    assert done.returncode == deploykit.MissingDependencyError.exit_code
    assert f'pip install "{wheel}[onnxruntime-runtime]"' in done.stderr
    assert core.deploykit("inspect", str(artifact.path))


def test_runtime_extra_is_enough_on_the_device(runtime, artifact: deploykit.Artifact) -> None:
    assert "torch" not in runtime.distributions
    assert runtime.deploykit("verify", str(artifact.path))
    assert runtime.deploykit("profile", str(artifact.path))
    code = (
        "import deploykit, sys; artifact = deploykit.load(sys.argv[1]); session = artifact.open();"
        "print(*session.run(artifact.golden().inputs[0])); assert 'torch' not in sys.modules"
    )
    assert runtime.run("-c", code, str(artifact.path)).stdout.split() == [spec.name for spec in artifact.outputs]
