"""The same program with TensorRT for RTX, against the recording fake: what it takes, finishes, keeps and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeCuda, FakeObject, FakeTensorRT
from safetensors.numpy import save_file

from deploykit_targets._on_device import board
from deploykit_targets._tensorrt import build_engine

RTX = "rtx-1.7.1.116"
BLUEPRINT: dict[str, Any] = {
    "model": "model.onnx",
    "device": "rtx-4090",
    "arch": "sm_89",
    "library": "tensorrt_rtx",
    "compute_capabilities": ["sm_86", "sm_89"],
    "engine": "model.engine",
    "engine_version": "1.7.1.116",
    "precision": "int8",
    "inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32", "example": [1, 4]}],
    "outputs": [{"name": "y", "shape": ["batch", 4], "dtype": "float32"}],
    "options": {"max_batch": 4, "shapes": ["x=1x4:2x4:4x4"]},
}


class Ada(FakeCuda):
    capability = (8, 9)
    device_name = "a fake RTX 4090"


class Hopper(FakeCuda):
    capability = (9, 0)
    device_name = "a fake H200"


def options(folder: Path, *arguments: str) -> Any:
    return build_engine.parse(["--artifact", str(folder), *arguments], BLUEPRINT["options"])


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRT, *arguments: str, cuda: Any = Ada) -> int:
    """The whole program in an artifact's folder; returns the exit code."""
    (folder / "blueprint.json").write_text(json.dumps(BLUEPRINT))
    (folder / "model.onnx").touch()
    if not (folder / "model.engine").exists():
        (folder / "model.engine").write_bytes(b"compiled ahead")
    x, y = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    save_file({"input.0.x": x, "output.0.y": y}, folder / "golden.safetensors")
    monkeypatch.setattr(build_engine, "Cuda", cuda)
    monkeypatch.setattr(build_engine, "import_rtx", lambda: trt)
    monkeypatch.setattr(sys, "argv", ["build_engine.py", "--artifact", str(folder), *arguments])
    return board.run_cli(build_engine.main, build_engine.parse)


def test_the_engine_of_the_export_is_finished_proved_and_its_kernels_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT(RTX)
    assert run(tmp_path, monkeypatch, trt, "--runs", "2") == 0
    assert trt.calls("Builder.build_serialized_network") == [], "nothing is compiled again"
    assert trt.calls("Runtime.deserialize_cuda_engine") == [(b"compiled ahead",)]
    assert (tmp_path / "model.engine").read_bytes() == b"compiled ahead"
    assert (tmp_path / "runtime.cache").read_bytes() == b"kernels"
    assert not (tmp_path / "timing.cache").exists()
    report = json.loads((tmp_path / "build.json").read_text())
    assert (report["runtime"], report["tensorrt_rtx"], report["arch"]) == ("tensorrt_rtx", "1.7.1.116", "sm_89")
    assert report["golden"]["failures"] == [] and report["profile"]["runs"] == 2


def test_kernels_are_made_before_the_cache_is_kept_also_where_nobody_runs_golden_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT(RTX)
    assert run(tmp_path, monkeypatch, trt, "--runs", "0", "--no-golden") == 0
    order = [name for name, _ in trt.log]
    assert order.index("IExecutionContext.execute_async_v3") < order.index("IRuntimeCache.serialize")
    shape, *_ = trt.calls("IExecutionContext.set_input_shape")
    assert shape == ("x", (2, 4)), "the usual shape"


def test_a_kept_cache_is_given_to_the_next_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT(RTX)
    assert run(tmp_path, monkeypatch, trt) == 0
    trt.log.clear()
    engine = build_engine.open_engine(tmp_path)
    assert trt.calls("IRuntimeCache.deserialize") == [(b"kernels",)]
    order = [name for name, _ in trt.log]
    assert order.index("IRuntimeConfig.set_runtime_cache") < order.index("ICudaEngine.create_execution_context")
    engine.profile({"x": np.ones((1, 4), np.float32)}, 2)
    assert len(trt.calls("ICudaEngine.create_runtime_config")) == 1, "the context that times layers takes them, too"
    contexts = trt.calls("ICudaEngine.create_execution_context")
    assert len(contexts) == 2 and all(len(arguments) == 1 for arguments in contexts)
    trt.answers["IRuntimeCache.deserialize"] = False
    build_engine.open_engine(tmp_path)  # of another driver: kernels are made again


def test_the_engine_of_the_export_is_taken_unless_library_gpu_or_options_differ(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"compiled")

    def taken(*arguments: str, version: str = RTX, arch: str = "sm_89", blueprint: Any = BLUEPRINT) -> Any:
        given = options(tmp_path, *arguments)
        given.compile_for = [arch]
        trt = FakeTensorRT(RTX)
        trt.__version__ = version.removeprefix("rtx-")
        return build_engine.compiled_before(blueprint, given, trt)

    assert taken() == taken("--runs", "0") == taken(arch="sm_86") == b"compiled"
    assert taken("--shape", "x=1x4:2x4:4x4") == b"compiled", "`deploykit build` says again what was exported"
    assert taken("--shape", "x=1x4:2x4:8x4") is None and taken("--workspace-mib", "64") is None
    assert taken(version="1.8.0.1") is None and taken(arch="sm_120") is None
    assert taken(blueprint={"options": {}, "inputs": []}) is None


def test_another_version_of_the_library_compiles_its_own_for_this_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT(RTX)
    trt.__version__ = "1.8.0.1"
    assert run(tmp_path, monkeypatch, trt) == 0
    assert trt.calls("IBuilderConfig.num_compute_capabilities=") == [(1,)]
    ((capability, index),) = trt.calls("IBuilderConfig.set_compute_capability")
    assert (capability.name, index) == ("SM89", 0)
    assert trt.calls("Builder.create_network") == [(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),)]
    assert trt.calls("IBuilderConfig.set_flag") == [], "it has no flags of precision"
    assert (tmp_path / "model.engine").read_bytes() == b"engine"


def test_a_gpu_that_has_no_engines_is_refused_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--any-device",)):
        assert run(tmp_path, monkeypatch, FakeTensorRT(RTX), *more, cuda=Hopper) == 10
        said = capsys.readouterr().err
        assert "a fake H200 (sm_90), and TensorRT for RTX has no engines for sm_90" in said
        assert "h200:tensorrt" in said
    assert not (tmp_path / "runtime.cache").exists()


def test_another_gpu_than_those_of_the_artifact_is_refused_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Blackwell(FakeCuda):
        capability = (12, 0)

    assert run(tmp_path, monkeypatch, FakeTensorRT(RTX), cuda=Blackwell) == 10
    assert "is for rtx-4090 (sm_86, sm_89)" in capsys.readouterr().err
    trt = FakeTensorRT(RTX)
    assert run(tmp_path, monkeypatch, trt, "--any-device", cuda=Blackwell) == 0
    assert len(trt.calls("Builder.build_serialized_network")) == 1, "the engine of the export is for others"


def test_a_build_that_computes_something_else_fails_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ada, "to_host", lambda self, array, address: array.fill(3.0))
    assert run(tmp_path, monkeypatch, FakeTensorRT(RTX)) == board.GATE_MISSED


def test_an_engine_that_the_library_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT(RTX, **{"Runtime.deserialize_cuda_engine": None})
    assert run(tmp_path, monkeypatch, trt) == 10


def test_a_session_reads_what_the_fake_inspector_says() -> None:
    trt = FakeTensorRT(RTX)
    engine = build_engine.Engine(trt, Ada(), b"engine", {**BLUEPRINT, "runtime_cache": b""})
    assert isinstance(engine._context, FakeObject) and engine.layers({"x": (1, 4)})
