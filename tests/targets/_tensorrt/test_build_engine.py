"""The TensorRT program against a recording fake (`fake_tensorrt.py`): the order of its calls, not what TensorRT does.

On a machine with an NVIDIA driver and TensorRT, the last test builds and runs a real engine; elsewhere it is skipped
with the reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeCuda, FakeObject, FakeTensorRT
from safetensors.numpy import save_file

from deploykit_targets._on_device import board
from deploykit_targets._on_device.board import BuildError
from deploykit_targets._tensorrt import build_engine

VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
BLUEPRINT: dict[str, Any] = {
    "model": "model.onnx",
    "device": "jetson-orin",
    "arch": "sm_87",
    "precision": "int8",
    "inputs": [{"name": "x", "shape": [1, 4], "dtype": "float32", "example": [1, 4]}],
    "outputs": [{"name": "y", "shape": [1, 4], "dtype": "float32"}],
    "options": {"max_batch": 8},
}
DYNAMIC = {**BLUEPRINT, "inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32", "example": [1, 4]}]}
FEEDS = [{"x": np.ones((1, 4), np.float32)}]


def options(folder: Path, *arguments: str, **known: Any) -> Any:
    return build_engine.parse(["--artifact", str(folder), *arguments], known)


def built(
    trt: FakeTensorRT, folder: Path, *arguments: str, blueprint: dict[str, Any] = BLUEPRINT
) -> tuple[bytes, bytes]:
    return build_engine.build(trt, blueprint, options(folder, *arguments))


@pytest.mark.parametrize("version", VERSIONS)
def test_builds_a_strongly_typed_network_without_precision_flags(version: str, tmp_path: Path) -> None:
    trt = FakeTensorRT(version)
    assert built(trt, tmp_path) == (b"engine", b"cache")
    (flags,) = trt.calls("Builder.create_network")
    assert flags == (1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),)
    assert trt.calls("IBuilderConfig.set_flag") == []
    assert trt.calls("OnnxParser.parse_from_file") == [(str(tmp_path / "model.onnx"),)]
    order = [name for name, _ in trt.log]
    steps = ["Builder.create_network", "OnnxParser.parse_from_file", "IBuilderConfig.set_timing_cache"]
    steps += ["Builder.build_serialized_network", "ITimingCache.serialize"]
    assert [name for name in order if name in steps] == steps
    assert trt.calls("IBuilderConfig.profiling_verbosity=")[0][0].name == "DETAILED"


@pytest.mark.parametrize("version", VERSIONS)
def test_options_reach_the_builder(version: str, tmp_path: Path) -> None:
    trt = FakeTensorRT(version)
    built(trt, tmp_path, "--workspace-mib", "64", "--version-compatible", "--hardware", "ampere+")
    ((pool, size),) = trt.calls("IBuilderConfig.set_memory_pool_limit")
    assert (pool.name, size) == ("WORKSPACE", 64 << 20)
    assert [flag.name for (flag,) in trt.calls("IBuilderConfig.set_flag")] == ["VERSION_COMPATIBLE"]
    assert trt.calls("IBuilderConfig.hardware_compatibility_level=")[0][0].name == "AMPERE_PLUS"


def test_a_hardware_level_that_a_version_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"10\.3\.0 has no hardware compatibility 'same-sm'"):
        built(FakeTensorRT("10.3.0"), tmp_path, "--hardware", "same-sm")
    built(FakeTensorRT("11.4.0.106"), tmp_path, "--hardware", "same-sm")


def test_dla_on_10_sets_flags_of_the_precision_and_falls_back_to_the_gpu(tmp_path: Path) -> None:
    trt = FakeTensorRT("10.3.0")
    built(trt, tmp_path, "--dla", "1")
    assert trt.calls("Builder.create_network") == [(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH),)]
    assert [flag.name for (flag,) in trt.calls("IBuilderConfig.set_flag")] == ["GPU_FALLBACK", "INT8"]
    assert trt.calls("IBuilderConfig.DLA_core=") == [(1,)]
    assert trt.calls("IBuilderConfig.default_device_type=")[0][0].name == "DLA"


def test_before_10_precision_is_set_by_flags(tmp_path: Path) -> None:
    trt = FakeTensorRT("8.6.1")
    built(trt, tmp_path, blueprint={**BLUEPRINT, "precision": "mixed"})
    assert trt.calls("Builder.create_network") == [(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH),)]
    assert [flag.name for (flag,) in trt.calls("IBuilderConfig.set_flag")] == ["INT8", "FP16"]


def test_dla_on_11_stays_strongly_typed(tmp_path: Path) -> None:
    trt = FakeTensorRT("11.4.0.106")
    built(trt, tmp_path, "--dla", "0", "--no-gpu-fallback")
    assert trt.calls("IBuilderConfig.set_flag") == []
    assert [flag.name for (flag,) in trt.calls("OnnxParser.set_flag")] == ["ADJUST_FOR_DLA"]


@pytest.mark.parametrize("version", VERSIONS)
def test_dynamic_axes_get_a_profile_around_the_golden_shape(version: str, tmp_path: Path) -> None:
    trt = FakeTensorRT(version)
    built(trt, tmp_path, blueprint=DYNAMIC)
    assert trt.calls("IOptimizationProfile.set_shape") == [("x", (1, 4), (1, 4), (8, 4))]
    assert len(trt.calls("IBuilderConfig.add_optimization_profile")) == 1


def test_a_given_range_wins(tmp_path: Path) -> None:
    trt = FakeTensorRT("10.3.0")
    built(trt, tmp_path, "--shape", "x=2x4:4x4:16x4", blueprint=DYNAMIC)
    assert trt.calls("IOptimizationProfile.set_shape") == [("x", (2, 4), (4, 4), (16, 4))]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("x=2x4", "NAME=MIN:OPT:MAX"),
        ("x=2xfour:2x4:2x4", "NAME=MIN:OPT:MAX"),
        ("z=2x4:4x4:8x4", "there is no input 'z'"),
        ("x=2:4:8", "x has 2 axes"),
        ("x=2x4:4x4:8x5", "axis 1 of x is always 4"),
        ("x=4x4:2x4:8x4", "not 1 <= 4 <= 2 <= 8"),
        ("x=0x4:2x4:8x4", "not 1 <= 0"),
    ],
)
def test_a_range_that_cannot_be_is_said(shape: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=said):
        built(FakeTensorRT("10.3.0"), tmp_path, "--shape", shape, blueprint=DYNAMIC)


def test_ranges_of_the_export_are_the_programs_defaults(tmp_path: Path) -> None:
    trt = FakeTensorRT("10.3.0")
    build_engine.build(trt, DYNAMIC, options(tmp_path, shapes=["x=2x4:4x4:16x4"]))
    assert trt.calls("IOptimizationProfile.set_shape") == [("x", (2, 4), (4, 4), (16, 4))]


def test_static_shapes_need_no_profile(tmp_path: Path) -> None:
    trt = FakeTensorRT("10.3.0")
    built(trt, tmp_path)
    assert trt.calls("Builder.create_optimization_profile") == []


def test_the_timing_cache_of_an_earlier_build_is_used_and_a_foreign_one_replaced(tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(b"earlier")
    trt = FakeTensorRT("10.3.0")
    built(trt, tmp_path)
    assert trt.calls("IBuilderConfig.create_timing_cache") == [(b"earlier",)]
    trt = FakeTensorRT("10.3.0", **{"IBuilderConfig.set_timing_cache": False})
    built(trt, tmp_path)
    assert trt.calls("IBuilderConfig.create_timing_cache") == [(b"earlier",), (b"",)]


def test_a_refused_model_names_the_parsers_errors(tmp_path: Path) -> None:
    trt = FakeTensorRT("10.3.0")
    trt.answers.update(
        {
            "OnnxParser.parse_from_file": False,
            "OnnxParser.num_errors": 1,
            "OnnxParser.get_error": lambda index: FakeObject(trt, "ParserError"),
            "ParserError.desc": "unsupported operator Col2Im",
            "ParserError.node": 3,
        }
    )
    with pytest.raises(BuildError, match=r"refuses model\.onnx: unsupported operator Col2Im \(node 3\)") as caught:
        built(trt, tmp_path)
    assert caught.value.code == 4


def test_a_failed_build_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    trt = FakeTensorRT("10.3.0", **{"Builder.build_serialized_network": None})
    with pytest.raises(BuildError, match="could not build the engine") as caught:
        built(trt, tmp_path, "--dla", "0", "--no-gpu-fallback")
    assert "--no-gpu-fallback" in caught.value.hint


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_copies_in_executes_and_copies_out(version: str) -> None:
    trt, cuda = FakeTensorRT(version), FakeCuda()
    engine = build_engine.Engine(trt, cuda, b"engine", BLUEPRINT)
    outputs = engine.run(FEEDS[0])
    assert outputs["y"].shape == (1, 4) and outputs["y"].dtype == np.float32
    assert cuda.copies == ["in", "out", "wait"]
    assert trt.calls("IExecutionContext.execute_async_v3") == [(cuda.stream,)]
    assert {name for name, _ in trt.calls("IExecutionContext.set_tensor_address")} == {"x", "y"}
    engine.run(FEEDS[0])
    assert len(cuda.allocated) == 2, "buffers are kept from run to run"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_profile_reports_percentiles_and_sets_a_profiler(version: str) -> None:
    trt = FakeTensorRT(version)
    report = build_engine.Engine(trt, FakeCuda(), b"engine", BLUEPRINT).profile(FEEDS[0], 5)
    assert report["runs"] == 5 and {"p50", "p90", "p99"} <= report["latency_ms"].keys()
    assert report["notes"][0] == "measured on a fake Orin (sm_87)", "other cards of an architecture take its artifacts"
    assert len(trt.calls("IExecutionContext.profiler=")) == 1


def test_times_of_layers_are_medians_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow run is no slower layer; a layer that reports twice in a run took both times together."""
    told: list[Any] = []
    monkeypatch.setattr(build_engine, "profiler_of", lambda _, add: told.append(add))
    engine = build_engine.Engine(FakeTensorRT("10.3.0"), FakeCuda(), b"engine", BLUEPRINT)
    runs = iter([(1.0, 2.0), (1.0, 2.0), (50.0, 2.5)])

    def run(feeds: Any) -> None:
        whole, half = next(runs)
        for layer, milliseconds in (("conv", whole), ("loop", half), ("loop", half)):
            told[0](layer, milliseconds)

    monkeypatch.setattr(engine, "run", run)
    assert engine._layer_times(FEEDS[0], 3) == {"conv": 1000.0, "loop": 4000.0}


def test_an_engine_of_another_machine_is_refused() -> None:
    trt = FakeTensorRT("10.3.0", **{"Runtime.deserialize_cuda_engine": None})
    with pytest.raises(BuildError, match="refuses the engine") as caught:
        build_engine.Engine(trt, FakeCuda(), b"engine", BLUEPRINT)
    assert caught.value.code == 10 and "build it again" in caught.value.hint


def test_a_shape_outside_the_profile_is_refused() -> None:
    trt = FakeTensorRT("10.3.0", **{"IExecutionContext.set_input_shape": False})
    with pytest.raises(BuildError, match="outside the engine's profile"):
        build_engine.Engine(trt, FakeCuda(), b"engine", BLUEPRINT).run(FEEDS[0])


def test_layers_tell_onnx_nodes_precision_and_device() -> None:
    layers = build_engine.Engine(FakeTensorRT("10.3.0"), FakeCuda(), b"engine", BLUEPRINT).layers({"x": (1, 4)})
    assert [(layer["nodes"], layer["precision"], layer["device"]) for layer in layers] == [
        (["conv1", "relu"], "int8", "gpu"),
        ([], "float32", "gpu"),
        ([], "int8", "dla"),
    ]


# The strings are those that NVIDIA's engine explorer (trex) lists, and the bare names of Myelin's kernels; for int4 and
# fp4 it has bare names only, for the DLA nothing: those are made after the others.
@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "float32"),
        ("Channel major FP32 format where channel % 4 == 0 with 3 spatial dimensions", "float32"),
        ("Float", "float32"),
        ("Row major linear FP16 format", "float16"),
        ("Channel major FP16 format where channel == 4 and column stride % 32 == 0", "float16"),
        ("Half", "float16"),
        ("Row major linear BFloat16 format", "bfloat16"),
        ("Two wide channel vectorized row major BFloat16 format", "bfloat16"),
        ("BFloat16", "bfloat16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Channel major INT8 format where column stride % 32 == 0", "int8"),
        ("Int8 NC/32HW32", "int8"),
        ("Int8", "int8"),
        ("Row major linear UInt8 format", "uint8"),
        ("Row major linear FP8 format", "fp8"),
        ("FP8", "fp8"),
        ("E4M3", "fp8"),
        ("Int4", "int4"),
        ("Row major linear FP4 format (kLINEAR)", "fp4"),
        ("FP4E2M1", "fp4"),
        ("Row major linear Int32", "int32"),
        ("Row major linear Int64 format", "int64"),
        ("Row major linear BOOL", "bool"),
        ("DLA linear Int8 format", "int8"),
        ("DLA_HWC4 FP16 format", "float16"),
        ("Unknown format", "unknown"),
        ("N/A due to dynamic shapes", "unknown"),
        ("", "unknown"),
    ],
)
def test_every_format_of_the_inspector_is_told_by_whole_words(text: str, precision: str) -> None:
    layer = {"Name": "l", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": text}]}
    assert build_engine.describe_layer(layer)["precision"] == precision


def test_a_layer_computes_in_the_narrowest_of_its_inputs_and_never_in_a_mask() -> None:
    def found(*formats: str, side: str = "Inputs", kind: str = "gemm") -> str:
        layer = {"LayerType": kind, side: [{"Format/Datatype": text} for text in formats]}
        return str(build_engine.describe_layer(layer)["precision"])

    assert found("Float", "Int8", "Half") == "int8"
    assert found("Bool", "Int64", "BFloat16") == "bfloat16"
    assert found("Half", side="Outputs") == "float16", "a constant has no inputs"
    assert found("Half", "Int8", "Float", kind="kgen") == "float32", "a pointwise chain widens what it reads"
    assert found("Int8", kind="kgen") == "int8" and found("Half", "Int8", kind="kgen") == "float16"
    linear = {"Inputs": [{"Datatype": "Half", "Format": "kLINEAR"}]}
    assert build_engine.describe_layer(linear)["precision"] == "float16"


def test_a_fused_product_names_the_weights_that_it_holds_narrower_than_its_inputs() -> None:
    def found(read: str, *held: str, kind: str = "runtime_fusion") -> str:
        constants = [{"Datatype": text} for text in held]
        layer = {"LayerType": kind, "Inputs": [{"Datatype": read}], "Constants": constants}
        return str(build_engine.describe_layer(layer)["precision"])

    assert found("Half", "Half", "Int4") == "int4-weights" and found("Float", "Int8") == "int8-weights"
    assert found("Half", "FP8") == "fp8-weights"
    assert found("Half", "Half") == "float16" and found("Int8", "Int8") == "int8"
    assert found("Half", "Int4", kind="gemm") == "float16", "expanded before: the product reads float16"


@pytest.mark.parametrize(
    ("kind", "device", "role"),
    [
        ("Myelin", "gpu", "multiplies"),
        ("DLA", "dla", "multiplies"),
        ("CaskGemmConvolution", "gpu", "multiplies"),
        ("CaskConvActPool", "gpu", "multiplies"),
        ("MatrixMultiply", "gpu", "multiplies"),
        ("gemm", "gpu", "multiplies"),
        ("deconv", "gpu", "multiplies"),
        ("correlation", "gpu", "multiplies"),
        ("runtime_fusion", "gpu", "multiplies"),
        ("conv", "gpu", "multiplies"),
        ("kgen", "gpu", "other"),
        ("PointWiseV2", "gpu", "moves"),
        ("CaskPooling", "gpu", "moves"),
        ("Reformat", "gpu", "moves"),
    ],
)
def test_the_type_of_a_layer_tells_device_and_role_and_its_name_does_not(kind: str, device: str, role: str) -> None:
    found = build_engine.describe_layer({"Name": "{ForeignNode[conv...linear]}", "LayerType": kind})
    assert (found["device"], found["role"]) == (device, role)


def test_versions_of_tensorrt_for_rtx_begin_at_1_and_are_strongly_typed() -> None:
    rtx = SimpleNamespace(__name__="tensorrt_rtx_bindings", __version__="1.7.1.116")
    other = SimpleNamespace(__name__="tensorrt", __version__="8.6.1")
    options = build_engine.parse([], {})
    assert build_engine.is_strongly_typed(rtx, options) and not build_engine.is_strongly_typed(other, options)


def test_another_gpu_is_refused_unless_asked_for(tmp_path: Path) -> None:
    cuda = FakeCuda()
    cuda.capability = (9, 0)
    with pytest.raises(BuildError, match=r"is for jetson-orin \(sm_87\); this is a fake Orin \(sm_90\)") as caught:
        build_engine.check_device(BLUEPRINT, cuda, options(tmp_path), FakeTensorRT("10.3.0"))
    assert "`python3 build_engine.py --any-device`" in caught.value.hint, "`deploykit build` has no such option"
    build_engine.check_device(BLUEPRINT, cuda, options(tmp_path, "--any-device"), FakeTensorRT("10.3.0"))


def test_without_a_driver_the_program_says_so_and_does_not_crash(tmp_path: Path) -> None:
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    folder = artifact_folder(tmp_path)
    done = subprocess.run([sys.executable, folder / "build_engine.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 10
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["error"] == "there is no NVIDIA driver on this machine" and answer["hint"]
    assert "Traceback" not in done.stderr


def artifact_folder(folder: Path) -> Path:
    """The build program as an artifact carries it: two programs beside each other, and `blueprint.json`."""
    for module in (build_engine, board):
        source = Path(str(module.__file__))
        (folder / source.name).write_text(source.read_text())
    (folder / "blueprint.json").write_text(json.dumps(BLUEPRINT))
    return folder


def golden(folder: Path, value: float) -> None:
    """Golden data of a model whose output is `value`; the fake's outputs are zeros."""
    x, y = np.ones((1, 4), np.float32), np.full((1, 4), value, np.float32)
    save_file({"input.0.x": x, "output.0.y": y}, folder / "golden.safetensors")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, blueprint: Any = BLUEPRINT) -> int:
    """The whole program over the recording fake, in an artifact's folder; returns the exit code."""
    (folder / "blueprint.json").write_text(json.dumps(blueprint))
    (folder / "model.onnx").touch()
    monkeypatch.setattr(build_engine, "Cuda", FakeCuda)
    monkeypatch.setattr(build_engine, "import_tensorrt", lambda: FakeTensorRT("10.3.0"))
    monkeypatch.setattr(sys, "argv", ["build_engine.py", "--artifact", str(folder), *arguments])
    return board.run_cli(build_engine.main, build_engine.parse)


def test_a_build_that_reproduces_the_golden_outputs_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden(tmp_path, 0.0)
    assert run(tmp_path, monkeypatch, "--runs", "3") == 0
    report = json.loads((tmp_path / "build.json").read_text())
    assert report["golden"]["failures"] == [] and report["profile"]["runs"] == 3
    assert {"model.engine", "layers.json", "timing.cache"} <= {path.name for path in tmp_path.iterdir()}


def test_a_build_that_computes_something_else_fails_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    golden(tmp_path, 1.0)
    assert run(tmp_path, monkeypatch) == 6
    assert "SQNR of y is 0.0 dB, below 30 dB" in capsys.readouterr().err
    report = json.loads((tmp_path / "build.json").read_text())
    assert report["golden"]["failures"] and "profile" not in report
    lenient = {**BLUEPRINT, "tolerance": {"min_sqnr_db": -1.0}}
    assert run(tmp_path, monkeypatch, "--runs", "0", blueprint=lenient) == 0, "the blueprint carries the gate"


def test_without_golden_data_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch) == 9
    assert "there is no golden data" in capsys.readouterr().err
    (tmp_path / "golden.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 damaged")
    assert run(tmp_path, monkeypatch) == 9
    assert "golden.safetensors is damaged" in capsys.readouterr().err
    assert not (tmp_path / "model.engine").exists()
    assert run(tmp_path, monkeypatch, "--no-golden", "--runs", "0") == 0, "deploykit compares by itself"


@pytest.mark.parametrize(
    "blueprint",
    [
        [],
        {},
        3,
        None,
        {**BLUEPRINT, "inputs": [3]},
        {**BLUEPRINT, "inputs": [{"name": "x", "shape": [1], "dtype": "float32"}]},
        *({**BLUEPRINT, "model": model} for model in ("../model.onnx", "/etc/passwd", "..", "", "a/model.onnx")),
        {**BLUEPRINT, "options": []},
        {**BLUEPRINT, "compute_capabilities": 3},
        {**BLUEPRINT, "compute_capabilities": [89]},
        {**BLUEPRINT, "options": {"shapes": 3}},
        {**BLUEPRINT, "tolerance": {"min_sqnr_db": "high"}},
    ],
)
def test_a_damaged_blueprint_is_said(blueprint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden(tmp_path, 0.0)
    assert run(tmp_path, monkeypatch, blueprint=blueprint) == 9


@pytest.mark.parametrize(
    ("arguments", "known", "said"),
    [
        (("--runs", "-5"), {}, "--runs"),
        (("--workspace-mib", "-1"), {}, "--workspace-mib"),
        (("--workspace-mib", "many"), {}, "--workspace-mib"),
        ((), {"workspace_mib": -1}, "--workspace-mib"),
        ((), {"optimization_level": 9}, "--optimization-level"),
        ((), {"hardware": "turing"}, "--hardware"),
        ((), {"max_batch": 0}, "--max-batch"),
        ((), {"dla": [1]}, "--dla"),
    ],
)
def test_a_bad_option_is_a_usage_error_typed_or_exported(
    arguments: tuple[str, ...],
    known: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, monkeypatch, *arguments, blueprint={**BLUEPRINT, "options": known})
    assert caught.value.code == 2 and f"argument {said}: " in capsys.readouterr().err


def test_a_folder_that_is_not_there_and_a_model_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    golden(tmp_path, 0.0)
    assert run(tmp_path, monkeypatch, "--out", str(tmp_path / "nowhere")) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    with pytest.raises(BuildError, match=r"model\.onnx is missing") as caught:
        build_engine.check_model(tmp_path / "gone" / "model.onnx")
    assert caught.value.code == 9


def test_an_engine_that_was_never_built_is_said(tmp_path: Path) -> None:
    (tmp_path / "blueprint.json").write_text(json.dumps(BLUEPRINT))
    with pytest.raises(BuildError, match=r"there is no model\.engine"):
        build_engine.open_engine(tmp_path)


def test_the_timing_cache_goes_where_it_can_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_engine.keep_cache(b"cache", (tmp_path / "read-only", tmp_path))
    assert (tmp_path / "timing.cache").read_bytes() == b"cache"
    assert "the timing cache is not kept: " in capsys.readouterr().err


def test_golden_data_is_read_without_safetensors(tmp_path: Path) -> None:
    tensors = {
        "input.0.x": np.arange(4, dtype=np.float32).reshape(1, 4),
        "output.0.y": np.array([[1, 2, 3, 4]], np.float32),
    }
    save_file(tensors, tmp_path / "golden.safetensors")
    inputs, outputs = board.read_golden(tmp_path, BLUEPRINT)
    np.testing.assert_array_equal(inputs[0]["x"], tensors["input.0.x"])
    np.testing.assert_array_equal(outputs[0]["y"], tensors["output.0.y"])


def test_comparison_is_the_sqnr_of_deploykit() -> None:
    from deploykit.judge.parity import OutputComparison

    rng = np.random.default_rng(0)
    expected, got = rng.normal(size=(2, 3, 8)).astype(np.float32), rng.normal(size=(2, 3, 8)).astype(np.float32)
    ours = OutputComparison("y")
    for a, b in zip(expected, got, strict=True):
        ours.add(a, b)
    found = board.compare([{"y": a} for a in expected], [{"y": b} for b in got])["y"]
    assert found["sqnr_db"] == pytest.approx(ours.metrics.sqnr_db)
    assert found["max_abs"] == pytest.approx(ours.metrics.max_abs)


@pytest.mark.parametrize(
    ("expected", "got", "decibel"),
    [
        ([np.inf, 1.0], [np.inf, 1.0], 200.0),
        ([-np.inf, 1.0], [np.inf, 1.0], -200.0),
        ([1.0, 1.0], [np.nan, 1.0], -200.0),
        ([np.nan, np.nan], [np.nan, np.nan], -200.0),
        ([[1.0, 1.0]], [1.0, 1.0], -200.0),
    ],
)
def test_equal_infinities_are_no_difference_and_other_shapes_are_one(expected: Any, got: Any, decibel: float) -> None:
    found = board.compare([{"y": np.array(expected)}], [{"y": np.array(got)}])["y"]
    assert found["sqnr_db"] == decibel
    json.dumps(found, allow_nan=False)


def has_driver() -> bool:
    try:
        build_engine.Cuda()
    except BuildError:
        return False
    return True


@pytest.mark.skipif(not has_driver(), reason="no NVIDIA driver: a real engine needs the GPU and TensorRT")
def test_a_real_engine_is_built_and_runs(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed beside the GPU")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    specs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], "g", specs[:1], specs[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
    folder = artifact_folder(tmp_path)
    values = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
    save_file({"input.0.x": values, "output.0.y": np.maximum(values, 0)}, folder / "golden.safetensors")
    command = [sys.executable, str(folder / "build_engine.py"), "--any-device", "--runs", "20"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert report["golden"]["outputs"]["y"]["max_abs"] == 0.0
    assert report["profile"]["latency_ms"]["p50"] > 0.0
