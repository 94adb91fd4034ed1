"""`deploykit tune`, `deploykit export --recipe` and what they print."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.cli import app
from deploykit.cli.commands import export as export_command
from deploykit.cli.commands import tune as tune_command

MODEL = """
import sys
sys.path.insert(0, {tests!r})
from conftest import draw, net

def factory():
    return net(), (draw(0),)

def metric(session):
    return [session.run({{session.inputs[0].name: draw(9).numpy()}})[session.outputs[0].name].max() > 0] * 3
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: Any
) -> Callable[..., Any]:
    (tmp_path / "own_net.py").write_text(MODEL.format(tests=str(Path(__file__).parent)))
    arrays = [feeds[name].numpy() for feeds in case.run.samples for name in feeds]
    np.savez(tmp_path / "data.npz", input=np.concatenate(arrays))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(command: str, *arguments: str) -> tuple[int, Any, str]:
        code = app.run([command, "own_net:factory", "--calibration", "data.npz", "--no-profile", *arguments, "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    return call


def test_a_search_its_recipe_and_the_export_of_it(run: Callable[..., Any], tmp_path: Path) -> None:
    gate = ("--min-sqnr-db", "20")
    metric = ("--evaluate", "own_net:metric", "--max-drop", "0.5")
    code, found, _ = run("tune", *gate, *metric, "--allow", "ptq", "-o", "out/a", "--save-recipe", "net.toml")
    assert code == 0 and found["met"] and [step["step"] for step in found["ladder"]] == ["ptq", "ptq: artifact"]
    assert {"metric", "sqnr_db", "int8_share", "predicted_cost", "measured_cost", "seconds"} <= found["ladder"][
        0
    ].keys()
    assert deploykit.Recipe.read("net.toml") == deploykit.load("out/a").recipe
    code, made, _ = run("export", "--recipe", "net.toml", *gate, *metric, "-o", "out/b")
    assert code == 0 and made["precision"] == "int8"
    assert (tmp_path / "out/a/manifest.json").read_bytes() == (tmp_path / "out/b/manifest.json").read_bytes()


def test_a_miss_has_the_ladder_in_its_document(run: Callable[..., Any]) -> None:
    code, found, shown = run("tune", "--min-sqnr-db", "170", "--allow", "ptq", "--budget-s", "0", "-o", "out/a")
    assert code == deploykit.ParityError.exit_code
    assert [step["outcome"] for step in found["error"]["ladder"]] == ["kept", "skipped", "failed"]
    assert found["error"]["candidate"].endswith("a.failed") and "170 dB" in shown
    assert "deploykit tune look" not in shown


def test_a_miss_shows_the_ladder_and_writes_the_recipe_of_the_nearest_model(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["tune", "own_net:factory", "--calibration", "data.npz", "--no-profile", "--min-sqnr-db", "170"]
    code = app.run([*asked, "--allow", "ptq", "--budget-s", "0", "-o", "out/a", "--save-recipe", "near.toml"])
    shown = capsys.readouterr().err
    assert code == deploykit.ParityError.exit_code
    assert shown.index("Ladder") < shown.index("error: ") and "ptq: artifact" in shown and "near.toml" in shown
    assert deploykit.Recipe.read("near.toml") == deploykit.load("out/a.failed").recipe


def test_a_recipe_that_cannot_be_written_is_refused_before_the_search(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for path in (".", "taken/near.toml"):
        code, found, _ = run("tune", "-o", "out/a", "--save-recipe", path)
        assert code == deploykit.UsageError.exit_code and "cannot write" in found["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_cannot_be_written_in_the_end_hides_no_miss(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.contract.recipe_file.check_writable", lambda path: None)
    code, found, shown = run(
        "tune", "--min-sqnr-db", "170", "--allow", "ptq", "--budget-s", "0", "-o", "out/a", "--save-recipe", "."
    )
    assert code == deploykit.ParityError.exit_code and "170 dB" in found["error"]["message"]
    assert "was not written" in shown


@pytest.mark.parametrize("path", ["own_net", "own_net:absent", "absent_module:f", "own_net:sys"])
def test_a_function_that_is_none_is_refused(run: Callable[..., Any], path: str) -> None:
    code, found, _ = run("tune", "--evaluate", path, "-o", "out/a")
    assert code == deploykit.UsageError.exit_code and "--evaluate" in found["error"]["message"]


def test_what_a_function_of_the_user_raises_is_told_as_that(run: Callable[..., Any], tmp_path: Path) -> None:
    """No traceback through the command line's own code, which says that it is a defect of deploykit."""
    (tmp_path / "fragile.py").write_text("def broken(given):\n    return given['no such key']\n")
    code, found, printed = run("tune", "--evaluate", "fragile:broken", "-o", "out/a")
    assert code == deploykit.UsageError.exit_code and "Traceback" not in printed
    message = found["error"]["message"]
    assert "--evaluate fragile:broken raised TypeError: " in message and "(fragile.py:2 in broken)" in message


def test_a_module_of_the_user_that_fails_is_told_with_its_line(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "halfway.py").write_text("ready = True\nbroken = 1 / 0\n")
    code, found, printed = run("tune", "--evaluate", "halfway:ready", "-o", "out/a")
    assert code == deploykit.UsageError.exit_code and "Traceback" not in printed
    assert "importing halfway raised ZeroDivisionError" in found["error"]["message"]
    assert "halfway.py:2" in found["error"]["message"]


def test_pages_for_people(
    case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # names in tables stand in one piece
    plan = deploykit.tune(
        case.captured, "x86-cpu", "int8", calibration=case.run, evaluate=case.right, max_drop=0.3,
        output=tmp_path / "a", profile=False, progress=False,
    )  # fmt: skip
    assert app.run(["inspect", str(tmp_path / "a"), "--recipe", str(tmp_path / "net.toml")]) == 0
    page = capsys.readouterr().out
    assert "Ladder" in page and "ptq: artifact" in page and "bias-correction 1" in page
    assert deploykit.Recipe.read(tmp_path / "net.toml") == plan.recipe


@pytest.mark.parametrize(
    ("whole", "part"),
    [(deploykit.export, deploykit.tune), (export_command.export, tune_command.tune)],
    ids=["python", "command line"],
)
def test_a_search_takes_what_an_export_takes(whole: Any, part: Any) -> None:
    taken = inspect.signature(part).parameters
    missing = [name for name in inspect.signature(whole).parameters if name not in taken]
    assert not missing


def test_method_algorithms_and_gates_of_the_command_are_those_of_the_search(run: Callable[..., Any]) -> None:
    code, found, _ = run(
        "tune", "--method", "minmax", "--algorithm", "gptq", "--min-cosine", "0.5", "--min-sqnr-db", "10", "-o", "out/a"
    )
    assert code == 0 and [step["step"] for step in found["ladder"]] == ["ptq", "ptq: artifact"]
    assert found["recipe"]["method"] == "minmax"
    assert found["recipe"]["algorithms"][-1]["name"] == "gptq"
    artifact = deploykit.load("out/a")
    assert artifact.parity is not None and artifact.parity.tolerance.min_cosine == 0.5
    assert artifact.parity.tolerance.min_sqnr_db == 10.0
