"""Running a recipe in a child process, talking to one that serves, and what becomes of its failures.

The recipe is a toy (`toy_recipe.py`), the child processes and pipes are real.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit.achieved import Achieved, LayerAchieved
from deploykit.artifact import Artifact, Golden, golden_bytes
from deploykit.errors import (
    ArtifactError,
    ConversionError,
    DeploykitError,
    DeviceError,
    MissingDependencyError,
    PlacementError,
    UsageError,
)
from deploykit.manifest import GOLDEN_NAME, Manifest
from deploykit.precision import Evidence, Precision
from deploykit.profiling import Effort
from deploykit.tensors import TensorSpec
from deploykit_targets._recipe import board
from deploykit_targets._recipe.host import interpreter_with, run_recipe
from deploykit_targets._recipe.portable import achieved_of, build_from
from deploykit_targets._recipe.session import RecipeSession, measure

PROGRAM = "toy_recipe.py"
LAYERS = (LayerAchieved("fc", "head.fc", "linear", "int8", macs=10), LayerAchieved("conv1", "conv1", "conv", "int8", 5))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "artifact"
    folder.mkdir()
    shutil.copyfile(str(board.__file__), folder / "board.py")
    shutil.copyfile(Path(__file__).with_name(PROGRAM), folder / PROGRAM)
    (folder / "recipe.json").write_text(json.dumps({"options": {"level": 3}, "inputs": [], "outputs": []}))
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
    with RecipeSession(artifact, PROGRAM, None) as session:
        for value in (1.0, 2.0):
            np.testing.assert_array_equal(session.run(feeds(value))["y"], 2 * feeds(value)["x"])


def test_a_crash_is_an_error_of_ours_and_not_our_end(artifact: Artifact) -> None:
    with RecipeSession(artifact, PROGRAM, None) as session:
        with pytest.raises(DeviceError, match="the toy process was killed by signal 11"):
            session.run(feeds(13))
        with pytest.raises(DeviceError, match="killed by signal 11"):
            session.run(feeds(1))


def test_a_failed_run_leaves_the_session_usable(artifact: Artifact) -> None:
    with RecipeSession(artifact, PROGRAM, None) as session:
        with pytest.raises(DeviceError, match="the device went away") as caught:
            session.run(feeds(14))
        assert caught.value.hint == "plug it in again"
        np.testing.assert_array_equal(session.run(feeds(1))["y"], [[2, 2]])


def test_an_engine_that_cannot_be_opened_says_why(artifact: Artifact) -> None:
    (artifact.path / "no_driver").touch()
    with pytest.raises(DeviceError, match="there is no driver"):
        RecipeSession(artifact, PROGRAM, None)


def test_a_measured_profile_is_evidence_of_the_device(artifact: Artifact) -> None:
    profile = measure(artifact, PROGRAM, None, Effort(max_runs=30))
    assert (profile.evidence, profile.latency_ms.p50, profile.runs) == (Evidence.DEVICE, 2.0, 30)
    assert profile.peak_memory_bytes == 7 and profile.notes == ("made up",)
    assert [(time.name, time.module_path) for time in profile.op_times] == [
        ("fc", "head.fc"),
        ("conv1 + relu", "conv1"),
    ]


def test_a_report_comes_back(artifact: Artifact) -> None:
    assert run_recipe(artifact.path / PROGRAM, ["--probe"], python=None, toolchain="toy")["arch"] == "toy"


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
        run_recipe(artifact.path / PROGRAM, ["--fail", str(code)], python=None, toolchain="toy")
    said = "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "it was refused" in said and "ask differently" in said


def test_a_crash_while_building_is_a_device_error(artifact: Artifact) -> None:
    with pytest.raises(DeviceError, match="killed by signal 11"):
        run_recipe(artifact.path / PROGRAM, ["--crash"], python=None, toolchain="toy")


def test_an_interpreter_is_found_by_what_it_has() -> None:
    assert interpreter_with("json", "numpy") == sys.executable
    assert interpreter_with("no_such_module_anywhere") is None


def test_building_copies_the_recipe_with_its_options(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = build_from(
        artifact, out, PROGRAM, "built.json", arguments=["--level", "5"], options={"level": 5}, python=None
    )
    assert json.loads((out / "built.json").read_text()) == {"level": 5}
    assert json.loads((out / "recipe.json").read_text())["options"] == {"level": 5}
    assert (out / PROGRAM).is_file() and (out / "board.py").is_file()
    assert made.entry == "built.json" and made.build is None
    assert made.tool_versions == {"toy": "1.0"}
    assert made.metadata["built_on"]["layers_by_device"] == {"gpu": 0, "dla": 1}


def test_achieved_is_what_was_built_and_unnamed_layers_are_unknown() -> None:
    planned = Achieved.count("int8", LAYERS, source="plan")
    built = achieved_of(planned, [{"nodes": ["fc.matmul_0"], "precision": "float16"}], source="inspector")
    by_name = {layer.name: layer for layer in built.layers}
    assert (by_name["fc"].precision, by_name["fc"].reason) == ("float16", "asked for int8")
    assert (by_name["conv1"].precision, by_name["conv1"].reason) == ("unknown", "not named in the built program")
    assert achieved_of(planned, [], source="nothing said") is planned
