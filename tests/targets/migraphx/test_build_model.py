"""The MIGraphX program against recording fakes of MIGraphX and of ONNX Runtime: the order of calls, not their results.

The names of the fake are those of MIGraphX's published Python API (ROCm/AMDMIGraphX docs/reference/MIGraphX-py.rst and
src/py/migraphx_py.cpp at f729a52fafa209a094eb8c6df3433e94423577fe). On a machine with an AMD GPU the last test runs
a real program; elsewhere it is skipped with the reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.artifact.golden import Golden, golden_bytes
from deploykit.places import frames
from deploykit_targets._on_device import board
from deploykit_targets._on_device.board import BuildError
from deploykit_targets._on_device.host import program_command
from deploykit_targets.migraphx import build_model

BLUEPRINT: dict[str, Any] = {
    "model": "model.onnx",
    "device": "amd-mi300x",
    "arch": "gfx942",
    "precision": "int8",
    "inputs": [{"name": "x", "shape": [2, 4], "dtype": "float32", "example": [2, 4]}],
    "outputs": [{"name": "y", "shape": [2, 4], "dtype": "float32"}],
    "options": {"runtime": "migraphx", "exhaustive_tune": False, "fast_math": False, "max_batch": 8},
}
DYNAMIC = {**BLUEPRINT, "inputs": [{**BLUEPRINT["inputs"][0], "shape": ["batch", 4]}]}
FEEDS = {"x": np.ones((2, 4), np.float32)}


class FakeProgram:
    def __init__(self, module: FakeMigraphx) -> None:
        self._module = module

    def compile(
        self, target: str, offload_copy: bool = True, fast_math: bool = True, exhaustive_tune: bool = False
    ) -> None:
        self._module.log.append(("compile", (target, offload_copy, fast_math, exhaustive_tune)))

    def get_parameter_names(self) -> list[str]:
        return ["x"]

    def run(self, params: dict[str, Any]) -> list[np.ndarray]:
        self._module.log.append(("run", tuple(params)))
        return [params["x"] * 2]


class FakeMigraphx:
    """Records calls under the names of MIGraphX's Python API; computes nothing."""

    class shape:  # noqa: N801  (as MIGraphX spells it)
        @staticmethod
        def dynamic_dimension(low: int, high: int) -> tuple[int, int]:
            return low, high

    def __init__(self, refusal: str = "") -> None:
        self.log: list[tuple[str, Any]] = []
        self._refusal = refusal

    def parse_onnx(self, filename: str, map_input_dims: Any = None, map_dyn_input_dims: Any = None) -> FakeProgram:
        if self._refusal:
            raise RuntimeError(self._refusal)
        assert not (map_input_dims and map_dyn_input_dims), "MIGraphX throws: only one of them may be given"
        self.log.append(("parse_onnx", (Path(filename).name, map_input_dims or map_dyn_input_dims)))
        return FakeProgram(self)

    def quantize_bf16(self, program: FakeProgram) -> None:
        self.log.append(("quantize_bf16", ()))

    def get_target(self, name: str) -> str:
        return name

    def argument(self, array: np.ndarray) -> np.ndarray:
        return array


class FakeOnnxRuntime:
    """Stands in for onnxruntime-migraphx: `active` is what a session says it runs on."""

    def __init__(self, active: list[str], effective: dict[str, str] | None = None, refuses: str = "") -> None:
        self.active, self.settings = active, {}
        self._effective, self._refuses = effective or {}, refuses

    def InferenceSession(self, path: str, providers: list[Any], enable_fallback: int) -> FakeOnnxRuntime:
        self.settings = dict(providers[0][1])
        assert not enable_fallback, "ONNX Runtime would try again without the setting that it refuses"
        if self._refuses in self.settings:
            raise ValueError(f"Unknown provider option: {self._refuses}")
        return self

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {"MIGraphXExecutionProvider": {**self.settings, **self._effective}}

    def get_providers(self) -> list[str]:
        return self.active

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [feeds["x"]]


def options(folder: Path, *arguments: str) -> Any:
    (folder / "model.onnx").touch()
    return build_model.parse(["--artifact", str(folder), *arguments], BLUEPRINT["options"])


def test_parses_and_compiles_for_the_gpu_with_copies(tmp_path: Path) -> None:
    migraphx = FakeMigraphx()
    build_model.compile_program(migraphx, BLUEPRINT, options(tmp_path))
    assert migraphx.log == [
        ("parse_onnx", ("model.onnx", {"x": [2, 4]})),
        ("compile", ("gpu", True, False, False)),
    ]


def test_bfloat16_is_made_by_migraphx_and_tuning_is_an_option(tmp_path: Path) -> None:
    migraphx = FakeMigraphx()
    build_model.compile_program(migraphx, {**BLUEPRINT, "precision": "bf16"}, options(tmp_path, "--exhaustive-tune"))
    assert [name for name, _ in migraphx.log] == ["parse_onnx", "quantize_bf16", "compile"]
    assert migraphx.log[-1][1] == ("gpu", True, False, True)


def test_a_dynamic_batch_gets_a_range_and_other_axes_do_not(tmp_path: Path) -> None:
    migraphx = FakeMigraphx()
    build_model.compile_program(migraphx, DYNAMIC, options(tmp_path, "--max-batch", "16"))
    assert migraphx.log[0][1] == ("model.onnx", {"x": [(1, 16), (4, 4)]})


def test_another_dynamic_axis_gets_the_range_it_is_given(tmp_path: Path) -> None:
    words = {**BLUEPRINT, "inputs": [{"name": "ids", "shape": [1, "length"], "dtype": "int64", "example": [1, 16]}]}
    migraphx = FakeMigraphx()
    build_model.compile_program(migraphx, words, options(tmp_path, "--shape", "ids=1x8:1x64:1x512"))
    assert migraphx.log[0][1] == ("model.onnx", {"ids": [(1, 1), (8, 512)]})


def test_a_static_input_beside_a_dynamic_one_is_a_range_of_one_size(tmp_path: Path) -> None:
    other = {"name": "m", "shape": [3], "dtype": "float32", "example": [3]}
    migraphx = FakeMigraphx()
    build_model.compile_program(migraphx, {**DYNAMIC, "inputs": [*DYNAMIC["inputs"], other]}, options(tmp_path))
    assert migraphx.log[0][1] == ("model.onnx", {"x": [(1, 8), (4, 4)], "m": [(3, 3)]})


def test_a_refused_model_is_a_conversion_failure(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="MIGraphX refuses the model: unknown operator") as caught:
        build_model.compile_program(FakeMigraphx("unknown operator"), BLUEPRINT, options(tmp_path))
    assert caught.value.code == 4


def test_a_program_runs_and_is_timed_on_the_hosts_clock() -> None:
    migraphx = FakeMigraphx()
    program = build_model.BuiltModel(migraphx, FakeProgram(migraphx), BLUEPRINT)
    np.testing.assert_array_equal(program.run(FEEDS)["y"], 2 * FEEDS["x"])
    report = program.profile(FEEDS, 5)
    assert report["runs"] == 5 and "host clock" in report["notes"][0]


def test_a_silent_fall_back_to_the_cpu_is_a_placement_failure(tmp_path: Path) -> None:
    runtime = FakeOnnxRuntime(["CPUExecutionProvider"])
    with pytest.raises(BuildError, match="runs the model on CPUExecutionProvider, not on MIGraphX") as caught:
        build_model.Provider(runtime, BLUEPRINT, options(tmp_path), tmp_path / "cache")
    assert caught.value.code == 8


def test_the_provider_gets_a_cache_folder_and_no_int8_switch(tmp_path: Path) -> None:
    runtime = FakeOnnxRuntime(["MIGraphXExecutionProvider", "CPUExecutionProvider"])
    provider = build_model.Provider(runtime, BLUEPRINT, options(tmp_path, "--exhaustive-tune"), tmp_path / "cache")
    assert runtime.settings == {
        "device_id": "0",
        "migraphx_model_cache_dir": str(tmp_path / "cache"),
        "migraphx_exhaustive_tune": "1",
    }
    assert set(provider.run(FEEDS)) == {"y"}


GPU = ["MIGraphXExecutionProvider", "CPUExecutionProvider"]


def provider(folder: Path, precision: str, runtime: FakeOnnxRuntime) -> Any:
    return build_model.Provider(runtime, {**BLUEPRINT, "precision": precision}, options(folder), folder / "cache")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_the_provider_is_asked_for_what_is_not_in_the_file(tmp_path: Path, precision: str) -> None:
    runtime = FakeOnnxRuntime(GPU)
    provider(tmp_path, precision, runtime)
    asked = {name: value for name, value in runtime.settings.items() if name.endswith("_enable")}
    assert asked == ({"migraphx_bf16_enable": "1"} if precision == "bf16" else {})


def test_a_provider_that_does_not_know_bfloat16_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="Unknown provider option: migraphx_bf16_enable") as caught:
        provider(tmp_path, "bf16", FakeOnnxRuntime(GPU, refuses="migraphx_bf16_enable"))
    assert caught.value.code == 4 and "newer onnxruntime-migraphx" in caught.value.hint


@pytest.mark.parametrize(
    ("precision", "effective", "words"),
    [
        ("bf16", {"migraphx_bf16_enable": "0"}, "no precision switch"),  # what a ROCm before 6.4.2 does
        ("fp32", {"migraphx_fp16_enable": "1"}, "migraphx_fp16_enable"),  # ORT_MIGRAPHX_FP16_ENABLE=1
        ("int8", {"migraphx_int8_enable": "True"}, "migraphx_int8_enable"),
    ],
)
def test_a_precision_other_than_asked_for_is_refused(
    tmp_path: Path, precision: str, effective: dict[str, str], words: str
) -> None:
    with pytest.raises(BuildError, match=f"runs with {words}") as caught:
        provider(tmp_path, precision, FakeOnnxRuntime(GPU, effective))
    assert caught.value.code == 8 and "ORT_MIGRAPHX_" in caught.value.hint


def test_fast_math_is_not_dropped_silently(tmp_path: Path) -> None:
    given = options(tmp_path, "--runtime", "onnxruntime", "--fast-math")
    with pytest.raises(BuildError, match="always turns --fast-math off") as caught:
        build_model.check_options(BLUEPRINT, given)
    assert caught.value.code == 2
    exported = {**BLUEPRINT["options"], "fast_math": True}
    kept = build_model.parse(["--runtime", "onnxruntime", "--no-fast-math"], exported)
    build_model.check_options(BLUEPRINT, kept)


def test_a_version_is_recorded_under_its_own_name(tmp_path: Path) -> None:
    class Module:
        __version__ = "1.31.1"

    given = options(tmp_path, "--runtime", "onnxruntime")
    assert build_model.runtime_facts(Module, given) == {"runtime": "onnxruntime", "onnxruntime": "1.31.1"}


@pytest.mark.parametrize(
    ("version", "name"),
    [(90402, "gfx942"), (90010, "gfx90a"), (110000, "gfx1100"), (120001, "gfx1201"), (90008, "gfx908")],
)
def test_the_kernels_version_is_llvms_name(version: int, name: str) -> None:
    assert build_model.gfx_name(version) == name


def test_a_gpu_is_found_in_the_drivers_files(tmp_path: Path) -> None:
    for index, properties in enumerate(("cpu_cores_count 8\ngfx_target_version 0\n", "gfx_target_version 90402\n")):
        node = tmp_path / "nodes" / str(index)
        node.mkdir(parents=True)
        (node / "properties").write_text(properties)
    driver = tmp_path / "kfd"
    driver.touch()
    assert build_model.find_gpu(str(driver), str(tmp_path / "nodes"))["arch"] == "gfx942"
    with pytest.raises(BuildError, match="lists no GPU"):
        build_model.find_gpu(str(driver), str(tmp_path / "nothing"))
    with pytest.raises(BuildError, match="no AMD GPU driver"):
        build_model.find_gpu(str(tmp_path / "absent"))


def test_another_gpu_is_refused_unless_asked_for(tmp_path: Path) -> None:
    gpu = {"arch": "gfx90a", "device": "MI210"}
    with pytest.raises(BuildError, match=r"is for amd-mi300x \(gfx942\); this is MI210 \(gfx90a\)"):
        build_model.check_device(BLUEPRINT, gpu, options(tmp_path))
    build_model.check_device(BLUEPRINT, gpu, options(tmp_path, "--any-device"))


def test_without_a_driver_the_program_says_so(tmp_path: Path) -> None:
    if Path("/dev/kfd").exists():
        pytest.skip("this machine has an AMD GPU driver")
    folder = artifact_folder(tmp_path)
    done = subprocess.run([sys.executable, folder / "build_model.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert json.loads(done.stdout.splitlines()[-1])["error"] == "there is no AMD GPU driver on this machine"
    assert "Traceback" not in done.stderr


def artifact_folder(folder: Path, blueprint: Any = BLUEPRINT) -> Path:
    (folder / "model.onnx").touch()
    sample = ({"x": FEEDS["x"]},), ({"y": 2 * FEEDS["x"]},)
    (folder / "golden.safetensors").write_bytes(golden_bytes(Golden(*sample)))
    for module in (build_model, board):
        source = Path(str(module.__file__))
        (folder / source.name).write_text(source.read_text())
    (folder / "blueprint.json").write_text(json.dumps(blueprint))
    return folder


def run_program(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code, and what is said on both streams."""
    command = [sys.executable, str(folder / "build_model.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "blueprint",
    [[], {}, 3, None, {**BLUEPRINT, "inputs": 3}, {**BLUEPRINT, "inputs": [{}]}, {**BLUEPRINT, "options": []}],
)
@pytest.mark.parametrize("mode", [(), ("--serve",)])
def test_a_damaged_blueprint_is_said_so(tmp_path: Path, blueprint: Any, mode: tuple[str, ...]) -> None:
    command = program_command(artifact_folder(tmp_path, blueprint) / "build_model.py", mode, python=None)
    asked = b"".join(frames.encode(frames.Frame(frames.OPEN)))
    done = subprocess.run(command, capture_output=True, input=asked, check=False)
    assert b"Traceback" not in done.stderr and b"blueprint.json beside this program is damaged" in done.stdout
    assert done.returncode == (0 if mode else 9), "a served engine answers with its error"


def test_serving_is_for_deploykit(tmp_path: Path) -> None:
    code, said = run_program(artifact_folder(tmp_path), "--serve")
    assert code == 2 and "--serve is for deploykit" in said


@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_without_golden_data_nothing_is_proved_and_nothing_is_built(tmp_path: Path, content: bytes | None) -> None:
    folder = artifact_folder(tmp_path)
    (folder / "golden.safetensors").unlink()
    if content is not None:
        (folder / "golden.safetensors").write_bytes(content)
    code, said = run_program(folder)
    assert code == 9 and "golden" in said and not (folder / "model.mxr").exists()


def test_a_cut_golden_file_and_a_missing_model_are_damage(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path)
    whole = (folder / "golden.safetensors").read_bytes()
    (folder / "golden.safetensors").write_bytes(whole[:-8])
    assert run_program(folder)[0] == 9
    (folder / "golden.safetensors").write_bytes(whole)
    (folder / "model.onnx").unlink()
    code, said = run_program(folder)
    assert code == 9 and "model.onnx is not beside this program" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "-1"], "-1 is below 0"),
        (["--max-batch", "0"], "0 is below 1"),
        (["--runs", "many"], "invalid whole number value"),
        (["--out", "/nowhere/at/all"], "is not a folder"),
        (["--shape", "nope"], "is not NAME=MIN:OPT:MAX"),
        (["--shape", "y=1x4:1x4:1x4"], "there is no input 'y'"),
        (["--shape", "x=2x4:2x4:2x4"], "x has no dynamic axis"),
        (["--runtime", "onnxruntime", "--fast-math"], "always turns --fast-math off"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_usage_errors(tmp_path: Path, arguments: list[str], words: str) -> None:
    code, said = run_program(artifact_folder(tmp_path), *arguments)
    assert code == 2 and words in said


class Session:
    """Stands in for a compiled program: multiplies by a factor, 2 of which is right."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return {"y": self._factor * feeds["x"]}


@pytest.mark.parametrize(("factor", "code"), [(2.0, 0), (2.001, 0), (2.5, 6), (float("nan"), 6)])
def test_alone_the_program_fails_closed_as_deploykit_build_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float, code: int
) -> None:
    """The GPU and MIGraphX are fakes; 30 dB is a relative error of 3 %."""
    monkeypatch.setattr(build_model, "find_gpu", lambda: {"arch": "gfx942", "device": "fake"})
    monkeypatch.setattr(build_model, "import_runtime", lambda _: FakeOnnxRuntime(GPU))
    monkeypatch.setattr(build_model, "open_engine", lambda *_: Session(factor))
    given = options(artifact_folder(tmp_path), "--runtime", "onnxruntime", "--runs", "0")
    assert board.run_program(build_model.main, given) == code
    captured = capsys.readouterr()
    assert ("the device computes something else" in captured.err) == bool(code)
    assert json.loads(captured.out)["golden"]["samples"] == 1, "the report is written in either case"


@pytest.mark.skipif(not Path("/dev/kfd").exists(), reason="no AMD GPU driver: a real program needs the GPU and ROCm")
def test_a_real_program_is_compiled_and_runs(tmp_path: Path) -> None:
    pytest.importorskip("migraphx", reason="MIGraphX is not installed beside the GPU")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    specs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], "g", specs[:1], specs[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
    command = [sys.executable, str(artifact_folder(tmp_path) / "build_model.py"), "--any-device", "--runs", "0"]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "model.mxr").is_file()
