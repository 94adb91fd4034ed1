"""`deploykit export`: how options become arguments of the pipeline, and what its answer shows."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.errors import DeploykitError
from deploykit.contract.precision import Precision
from deploykit.judge.parity import Tolerance, tolerance_of
from deploykit.pipeline import export as _export


@pytest.fixture
def exported(cli, artifact, monkeypatch):
    """Runs the command with a pipeline that records its arguments and answers with the toy artifact."""
    seen = {}

    def record(model, target, precision, **arguments):
        seen.update(arguments, model=model, target=target, precision=precision, path=list(sys.path))
        return artifact

    def call(*arguments):
        seen.clear()
        result = cli("export", "package.module:factory", *arguments)
        assert result.code == 0, result.err
        return seen

    monkeypatch.setattr(_export, "export", record)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    return call


def test_defaults_are_those_of_the_api(exported):
    import inspect

    parameters = inspect.signature(_export.export).parameters
    seen = exported()
    assert "record" in str(_export.export)
    assert seen.pop("model") == "package.module:factory" and parameters
    assert (seen["target"], seen["precision"], seen["calibration_method"]) == ("x86-cpu", "int8", "default")
    assert seen["profile"] is True and seen["strict"] is True and seen["dynamic_batch"] is False
    for name in ("calibration", "options", "tolerance", "min_placement", "min_speedup", "output", "cache_dir"):
        assert seen[name] is None, name
    assert seen["include"] == seen["exclude"] == ()


def test_every_option_arrives(exported, tmp_path):
    (tmp_path / "data.npz").write_bytes(b"")
    seen = exported(
        *("--target", "toy-board", "--precision", "int8", "--calibration", "data.npz", "-o", "out/x"),
        *("--method", "mse", "--include", "a.*", "--include", "b", "--exclude", "c.[0-9]"),
        *("--option", "gain=2.5", "--option", "keep-names=true", "--option", 'labels=["a", "b"]', "--option", "empty="),
        *("--dynamic-batch", "--no-profile", "--no-strict", "--no-progress"),
        *("--dynamic-shapes", "x=batch,3,height"),
        *("--min-placement", "0.9", "--min-speedup", "1.5", "--cache-dir", "cache"),
    )
    assert (seen["target"], seen["precision"], seen["calibration"]) == ("toy-board", "int8", "data.npz")
    assert (seen["output"], seen["calibration_method"], seen["cache_dir"]) == ("out/x", "mse", "cache")
    assert (seen["include"], seen["exclude"]) == (("a.*", "b"), ("c.[0-9]",))
    assert seen["options"] == {"gain": "2.5", "keep_names": "true", "labels": ["a", "b"], "empty": ""}
    assert seen["dynamic_batch"] and not seen["profile"] and not seen["strict"]
    assert (seen["min_placement"], seen["min_speedup"]) == (0.9, 1.5)
    assert seen["progress"] is False and seen["dynamic_shapes"] == {"x": {0: "batch", 2: "height"}}


def test_gates_change_the_default_of_the_precision(exported):
    default = tolerance_of(Precision.INT8)
    seen = exported("--min-sqnr-db", "25")
    assert seen["tolerance"] == replace(default, min_sqnr_db=25.0)
    seen = exported("--min-cosine", "0.5", "--min-top1-agreement", "0.9")
    assert seen["tolerance"] == replace(default, min_cosine=0.5, min_top1_agreement=0.9)
    assert exported("--precision", "int3", "--min-cosine", "0.5")["tolerance"] == Tolerance(min_cosine=0.5)


def test_factories_are_searched_in_the_current_folder(exported, tmp_path):
    assert exported()["path"][0] == str(tmp_path)


def test_made_up_data_needs_no_file(exported):
    assert exported("--calibration", "synthetic")["calibration"] == "synthetic"


def test_a_calibration_file_that_is_missing_is_noticed_at_once(cli, artifact, monkeypatch):
    monkeypatch.setattr(_export, "export", lambda *_, **__: pytest.fail("the model would be built first"))
    result = cli("export", "m:f", "--calibration", "nowhere.npz", "--json")
    assert result.code == 5 and "nowhere.npz" in result.document["error"]["message"]


def test_the_answer_is_the_artifact(cli, artifact, monkeypatch):
    monkeypatch.setattr(_export, "export", lambda *_, **__: artifact)
    page = cli("export", "m:f")
    assert page.code == 0 and "verified" in page.out and "34.5 dB" in page.out and "art" in page.out
    document = cli("export", "m:f", "--json").document
    assert document["status"] == "verified" and document["path"] == str(artifact.path)


def test_what_is_left_to_do_on_the_device_is_said(cli, toy, artifact, monkeypatch):
    build = PendingBuild("deploykit build .", "only the device can")
    pending = toy.write_artifact(artifact.path.with_name("my model"), build=build, status="needs device build")
    monkeypatch.setattr(_export, "export", lambda *_, **__: pending)
    page = cli("export", "m:f").out
    assert "deploykit build 'my model'" in page and "because only the device can" in page
    document = cli("export", "m:f", "--json").document
    assert document["build_command"] == "deploykit build 'my model'"
    assert document["build"]["command"] == "deploykit build .", "the manifest does not know where it lies"


def test_a_failed_artifact_that_was_asked_for_is_pointed_out(cli, toy, artifact, monkeypatch):
    parity = toy.make_parity(passed=False, failures=("SQNR 3 dB is below 18 dB",))
    failed = toy.write_artifact(artifact.path.with_name("bad"), status="failed", parity=parity)
    monkeypatch.setattr(_export, "export", lambda *_, **__: failed)
    result = cli("export", "m:f", "--no-strict", "--json")
    assert result.code == 0 and result.document["status"] == "failed"
    assert "marked failed: SQNR 3 dB is below 18 dB" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "toy-bord"], 2, "did you mean toy-board"),
        (["--target", "toy-board", "--precision", "int3"], 2, "unknown precision"),
        (["--target", "toy-board", "--precision", "bf16"], 3, "has no bf16"),
        (["--target", "absent-board"], 3, "pip install"),
        (["--target", "toy-board", "--option", "gian=3"], 2, "unknown option gian"),
        (["--target", "toy-board", "--option", "gain=much"], 2, "bad option value"),
        (["--target", "toy-board", "--method", "guess"], 2, "one of default, best, minmax"),
        (["--target", "toy-board", "--min-placement", "90"], 2, "from 0 to 1"),
        (["--target", "toy-board", "--no-profile", "--min-speedup", "2"], 2, "--min-speedup needs"),
        (["--target", "toy-board", "-o", "."], 9, "left alone"),
    ],
)
def test_the_pipeline_s_own_refusals(cli, artifact, arguments, code, words):
    result = cli("export", "m:f", *arguments)
    assert result.code == code and words in result.err and "Traceback" not in result.err


def test_unknown_errors_of_the_base_class_are_exit_code_1(cli, artifact, monkeypatch):
    def fail(*_, **__):
        raise DeploykitError("odd")

    monkeypatch.setattr(_export, "export", fail)
    assert cli("export", "m:f").code == 1
