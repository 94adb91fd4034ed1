"""AOTInductor artifacts: what is refused without the GPU, and what a package holds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import deploykit
from deploykit.capture import capture
from deploykit.testing import models
from deploykit_targets.aotinductor.retype import retyped


def test_a_gpu_target_is_refused_where_the_gpu_is_not(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    model, example_inputs = models.mlp()
    with pytest.raises(deploykit.DeviceError, match="h200 is not here") as caught:
        deploykit.export(
            model, target="h200:aotinductor", precision="fp32", example_inputs=example_inputs,
            output=tmp_path / "never", progress=False,
        )  # fmt: skip
    assert "TensorRT" in str(caught.value.hint)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: a GPU package is compiled on the GPU")
def test_a_gpu_package_runs_and_is_measured(tmp_path: Path) -> None:
    model, example_inputs = models.mlp()
    artifact = deploykit.export(
        model, target="h200:aotinductor", precision="bf16", example_inputs=example_inputs,
        output=tmp_path / "a", progress=False,
    )  # fmt: skip
    assert artifact.profile is not None and artifact.profile.latency_ms.p50 > 0.0


def test_a_package_holds_code_and_no_sources_of_this_machine(tmp_path: Path) -> None:
    model, example_inputs = models.mlp()
    artifact = deploykit.export(
        model, target="x86-cpu:aotinductor", precision="fp32", example_inputs=example_inputs,
        output=tmp_path / "a", progress=False, profile=False,
    )  # fmt: skip
    names = zipfile.ZipFile(artifact.entry).namelist()
    assert any(name.endswith(".so") for name in names)
    assert not any(name.endswith((".cpp", ".pkl")) for name in names)
    assert artifact.manifest.metadata["compiled_for"].startswith("x86_64")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrow_graph_keeps_its_interface(dtype: torch.dtype) -> None:
    model, example_inputs = models.residual_cnn()
    captured = capture(model, example_inputs=example_inputs)
    (got,) = retyped(captured, dtype)(*example_inputs)
    (want,) = captured.graph_module(*example_inputs)
    assert got.dtype is torch.float32
    # relative rounding of 2^-11 and 2^-8, a few layers deep
    torch.testing.assert_close(got, want, rtol=0.1, atol={torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype])
    weights = [value for value in retyped(captured, dtype).state_dict().values() if value.is_floating_point()]
    assert all(value.dtype is dtype for value in weights)
    assert all(value.dtype is not dtype for value in captured.graph_module.state_dict().values())
