"""Running a build program in a child process, talking to one that serves, and what becomes of its failures.

The build program is a toy (`toy_program.py`), the child processes and pipes are real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploykit.artifact.golden import Golden, golden_bytes
from deploykit.artifact.manifest import GOLDEN_NAME, MANIFEST_NAME, Manifest, PendingBuild
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.errors import (
    ArtifactError,
    ConversionError,
    DeploykitError,
    DeviceError,
    MissingDependencyError,
    PlacementError,
    UsageError,
)
from deploykit.contract.host import this_host
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.requirements import Preflight, Requirements
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.profiling import Effort
from deploykit.pipeline.staging import list_files
from deploykit.plugin.artifact import Artifact, load
from deploykit.plugin.registry import resolve
from deploykit.plugin.target import Payload, Target
from deploykit_targets._on_device import board
from deploykit_targets._on_device.host import interpreter_with, run_build_program
from deploykit_targets._on_device.portable import achieved_of, build_from, build_here
from deploykit_targets._on_device.session import ProgramSession, measure

PROGRAM = "toy_program.py"
LAYERS = (LayerAchieved("fc", "head.fc", "linear", "int8", macs=10), LayerAchieved("conv1", "conv1", "conv", "int8", 5))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "artifact"
    folder.mkdir()
    shutil.copyfile(str(board.__file__), folder / "board.py")
    shutil.copyfile(Path(__file__).with_name(PROGRAM), folder / PROGRAM)
    (folder / "blueprint.json").write_text(json.dumps({"options": {"level": 3}, "inputs": [], "outputs": []}))
    sample = {"x": np.ones((1, 2), np.float32)}
    (folder / GOLDEN_NAME).write_bytes(golden_bytes(Golden((sample,), ({"y": 2 * sample["x"]},))))
    manifest = Manifest(
        deploykit_version="0",
        target="toy",
        toolchain="toy",
        device="toy",
        precision=Precision.INT8,
        status="verified",
        entry="built.json",
        inputs=(TensorSpec("x", (1, 2), "float32"),),
        outputs=(TensorSpec("y", (1, 2), "float32"),),
        files=(),
        achieved=Achieved.count("int8", LAYERS, source="plan"),
        tool_versions={},
        fingerprints={},
    )
    return Artifact(folder, manifest)


def feeds(value: float) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 2), value, np.float32)}


def test_a_served_engine_runs_and_what_libraries_print_does_no_harm(artifact: Artifact) -> None:
    with ProgramSession(artifact, PROGRAM, None) as session:
        for value in (1.0, 2.0):
            np.testing.assert_array_equal(session.run(feeds(value))["y"], 2 * feeds(value)["x"])


def test_a_crash_is_an_error_of_ours_and_not_our_end(artifact: Artifact) -> None:
    with ProgramSession(artifact, PROGRAM, None) as session:
        with pytest.raises(DeviceError, match="the toy process was killed by signal 11"):
            session.run(feeds(13))
        with pytest.raises(DeviceError, match="killed by signal 11"):
            session.run(feeds(1))


def test_a_failed_run_leaves_the_session_usable(artifact: Artifact) -> None:
    with ProgramSession(artifact, PROGRAM, None) as session:
        with pytest.raises(DeviceError, match="the device went away") as caught:
            session.run(feeds(14))
        assert caught.value.hint == "plug it in again"
        np.testing.assert_array_equal(session.run(feeds(1))["y"], [[2, 2]])


def test_an_engine_that_cannot_be_opened_says_why(artifact: Artifact) -> None:
    (artifact.path / "no_driver").touch()
    with pytest.raises(DeviceError, match="there is no driver"):
        ProgramSession(artifact, PROGRAM, None)


def test_a_measured_profile_is_evidence_of_the_device(artifact: Artifact) -> None:
    profile = measure(artifact, PROGRAM, None, Effort(max_runs=30))
    assert (profile.evidence, profile.latency_ms.p50, profile.runs) == (Evidence.DEVICE, 2.0, 30)
    assert profile.peak_memory_bytes == 7 and profile.notes == ("made up",)
    assert [(time.name, time.module_path) for time in profile.op_times] == [
        ("fc", "head.fc"),
        ("conv1 + relu", "conv1"),
    ]


def test_a_report_comes_back(artifact: Artifact) -> None:
    assert run_build_program(artifact.path / PROGRAM, ["--probe"], python=None, toolchain="toy")["arch"] == "toy"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, UsageError),
        (3, MissingDependencyError),
        (4, ConversionError),
        (8, PlacementError),
        (9, ArtifactError),
        (10, DeviceError),
    ],
)
def test_every_exit_code_is_its_error(artifact: Artifact, code: int, kind: type[DeploykitError]) -> None:
    with pytest.raises(kind) as caught:
        run_build_program(artifact.path / PROGRAM, ["--fail", str(code)], python=None, toolchain="toy")
    said = "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "it was refused" in said and "ask differently" in said


def test_a_crash_while_building_is_a_device_error(artifact: Artifact) -> None:
    with pytest.raises(DeviceError, match="killed by signal 11"):
        run_build_program(artifact.path / PROGRAM, ["--crash"], python=None, toolchain="toy")


def test_an_interpreter_is_found_by_what_it_has() -> None:
    assert interpreter_with("json", "numpy") == sys.executable
    assert interpreter_with("no_such_module_anywhere") is None


def test_building_copies_the_program_with_its_options(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = build_from(
        artifact, out, PROGRAM, "built.json", arguments=["--level", "5"], options={"level": 5}, python=None
    )
    assert json.loads((out / "built.json").read_text()) == {"level": 5}
    assert json.loads((out / "blueprint.json").read_text())["options"] == {"level": 5}
    assert (out / PROGRAM).is_file() and (out / "board.py").is_file()
    assert made.entry == "built.json" and made.build is None
    assert made.tool_versions == {"toy": "1.0"}
    assert made.metadata["built_on"]["layers_by_device"] == {"gpu": 0, "dla": 1}


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a":' + "[" * 5000, "\xff", "link", "huge"])
def test_a_blueprint_that_somebody_wrote_is_refused_in_words(artifact: Artifact, tmp_path: Path, text: str) -> None:
    blueprint = artifact.path / "blueprint.json"
    blueprint.write_text(text, encoding="latin-1")
    if text == "link":
        blueprint.unlink()
        blueprint.symlink_to("/dev/zero")
    if text == "huge":
        os.truncate(blueprint, 8 << 30)
    (tmp_path / "built").mkdir()
    with pytest.raises(ArtifactError, match=r"blueprint\.json"):
        build_from(artifact, tmp_path / "built", PROGRAM, "built.json", arguments=[], options={}, python=None)


@pytest.mark.parametrize("target", ["jetson-orin", "amd-mi300x"])
def test_looking_at_a_built_artifact_runs_nothing_of_it(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Also where its manifest says that it needs nothing, so that only the GPU is left to be asked for."""
    meant, told = resolve(target), tmp_path / "told"
    for name in ("board.py", meant.target.program):  # type: ignore[attr-defined]
        (artifact.path / name).write_text(f"open({str(told)!r}, 'w').close()\n")
    monkeypatch.setattr(Target, "preflight", lambda *_: Preflight(this_host()))  # as where the vendor's library is
    names = {"target": target, "toolchain": meant.target.name, "device": meant.device.name}
    manifest = replace(
        artifact.manifest, **names, files=list_files(artifact.path), entry="blueprint.json", requirements=Requirements()
    )
    (artifact.path / MANIFEST_NAME).write_bytes(manifest.to_json())
    loaded = load(artifact.path)
    found = loaded.summary()["preflight"]
    assert not told.exists() and loaded.preflight().ok == found["ok"]


def test_of_a_recurrent_layer_its_gates_decide_and_not_what_brings_its_input() -> None:
    """A compiler that unrolls it names no product: what moves the input in float32 is no word on the steps."""
    planned = Achieved.count("fp16", [LayerAchieved("lstm", "rnn", "lstm", "float16", macs=10)], source="the file")
    layers = [
        {"nodes": ["x.cast", "lstm.transpose_0"], "precision": "float32", "role": "other"},
        {"nodes": [], "precision": "float16", "role": "multiplies"},
        {"nodes": ["lstm.lstm_3"], "precision": "float16", "role": "other"},
    ]
    assert achieved_of(planned, layers, source="a test").macs == {"float16": 10}


def test_achieved_is_what_was_built_and_unnamed_layers_are_unknown() -> None:
    planned = Achieved.count("int8", LAYERS, source="plan")
    built = achieved_of(planned, [{"nodes": ["fc.matmul_0"], "precision": "float16"}], source="inspector")
    by_name = {layer.name: layer for layer in built.layers}
    assert (by_name["fc"].precision, by_name["fc"].reason) == ("float16", "asked for int8")
    assert (by_name["conv1"].precision, by_name["conv1"].reason) == ("unknown", "not named in the built program")
    assert achieved_of(planned, [], source="nothing said") is planned


def test_the_layer_that_multiplies_decides_and_a_trailing_bias_does_not() -> None:
    planned = Achieved.count("int8", LAYERS, source="plan")
    gemm = {"nodes": ["fc.matmul_1"], "precision": "int8", "role": "multiplies"}
    bias = {"nodes": ["fc"], "precision": "float32", "role": "moves"}
    fused = {"nodes": ["fc"], "precision": "float32", "role": "other"}
    reformat = {"nodes": ["fc.matmul_1"], "precision": "float32", "role": "moves"}

    def precision(*layers: object) -> str:
        (layer,) = (one for one in achieved_of(planned, layers, source="inspector").layers if one.name == "fc")  # type: ignore[arg-type]
        return layer.precision

    for trailing in (bias, fused, reformat):
        assert precision(gemm, trailing) == precision(trailing, gemm) == "int8"
    assert precision({**gemm, "nodes": ["fc"]}, fused) == "int8", "a Gemm has the layer's own name"
    assert precision(bias) == "unknown", "what was added says nothing of what was multiplied"
    assert precision({**gemm, "precision": "unknown"}) == "unknown"


def test_a_child_does_not_outlive_us(artifact: Artifact) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        started = artifact.path / "child.pid"
        host = subprocess.Popen([sys.executable, "-c", HOST, str(artifact.path / PROGRAM)], stderr=subprocess.DEVNULL)
        child = int(wait_for(lambda file=started: file.read_text() if file.is_file() else ""))
        host.send_signal(ending)
        host.wait(timeout=30)
        wait_for(lambda pid=child: "gone" if not is_running(pid) else "")
        started.unlink()


HOST = """
import sys
from pathlib import Path
from deploykit_targets._on_device.host import run_build_program
run_build_program(Path(sys.argv[1]), ["--hang"], python=None, toolchain="toy")
"""


def wait_for(found: Callable[[], str], seconds: float = 30.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = found()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie, which nobody may have collected in a container."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_word_that_the_programs_parser_refuses_is_a_usage_error(artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="argument --runs: "):
        run_build_program(artifact.path / PROGRAM, ["--runs", "-5"], python=None, toolchain="toy")


def test_a_baseline_that_cannot_be_measured_is_refused_first(artifact: Artifact) -> None:
    manifest = artifact.manifest
    unbuilt = Artifact(artifact.path, replace(manifest, build=PendingBuild("deploykit build .", "build it there")))
    with pytest.raises(DeviceError, match="the baseline out/a is not runnable yet: build it there"):
        measure(artifact, PROGRAM, None, Effort(max_runs=1), ("out/a", unbuilt))
    other = Artifact(artifact.path, replace(manifest, inputs=(TensorSpec("x", (1, 3), "float32"),)))
    with pytest.raises(UsageError, match="the baseline out/b cannot take the artifact's golden inputs"):
        measure(artifact, PROGRAM, None, Effort(max_runs=1), ("out/b", other))


def test_what_is_built_here_keeps_its_timing_cache(artifact: Artifact) -> None:
    prepared: Any = SimpleNamespace(device=SimpleNamespace(toolchain="toy", arch="toy"))
    pending = Payload(PROGRAM, artifact.achieved, {})
    (artifact.path / "timing.cache").write_bytes(b"cache")
    made = build_here(prepared, artifact.path, pending, PROGRAM, "built.json", ["--out", str(artifact.path)], None)
    assert made.entry == "built.json" and (artifact.path / "timing.cache").is_file()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(board.BuildError, match="nowhere/a cannot be written: No such file") as caught:
        board.write_whole(tmp_path / "nowhere" / "a", b"")
    assert caught.value.code == 9
