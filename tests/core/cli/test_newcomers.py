"""What a newcomer types: names, files and options that are nearly right."""

from __future__ import annotations

import os

import numpy as np
import pytest

from deploykit.cli import main
from deploykit.cli.parameters import axes_by_name
from deploykit.contract.errors import UsageError

ROWS = np.arange(24, dtype=np.float32).reshape(6, 4) / 10


# -- dynamic shapes ---------------------------------------------------------------------------------------------------


def test_axes_by_name():
    assert axes_by_name(None) is None
    assert axes_by_name(["x=batch,3,height", "mask=batch"]) == {"x": {0: "batch", 2: "height"}, "mask": {0: "batch"}}


@pytest.mark.parametrize("text", ["x", "=batch", "x=", "x=batch,", "x=a b", "x=-1"])
def test_axes_of_another_form(text):
    with pytest.raises(UsageError, match="--dynamic-shapes") as caught:
        axes_by_name([text])
    assert "x=batch,3,height,width" in caught.value.hint


def test_axes_twice():
    with pytest.raises(UsageError, match="given twice"):
        axes_by_name(["x=a", "x=b"])


# -- arrays: the same rules for run and verify; calibration data has its own test -----------------------------------


@pytest.mark.parametrize("name", ["rows.npy", "other.npz", "double.npz", "half.npz"])
def test_run_takes_what_calibration_takes(cli, artifact, tmp_path, name):
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "other.npz", other=ROWS)
    np.savez(tmp_path / "double.npz", x=ROWS.astype(np.float64))
    np.savez(tmp_path / "half.npz", x=ROWS.astype(np.float16))
    result = cli("run", "art", "-i", name, "-o", "out.npz")
    assert result.code == 0, result.err
    assert ("note: " in result.err) == (name != "rows.npy")
    with np.load("out.npz") as found:
        assert found["output"].shape == (6, 3)


def test_run_refuses_integers_for_floats(cli, artifact, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS.astype(np.int64))
    result = cli("run", "art", "-i", "rows.npy", "-o", "out.npz")
    assert result.code == 2 and "dtype int64" in result.err


@pytest.fixture
def own(artifact, toy, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "right.npz", output=(ROWS @ toy.MATRIX).astype(np.float64))
    np.save(tmp_path / "wrong.npy", ROWS @ toy.MATRIX + 5)


def test_verify_takes_arrays_of_ones_own(cli, own):
    result = cli("verify", "art", "--input", "rows.npy", "--expected", "right.npz", "--json")
    assert result.code == 0, result.err
    assert result.document["own"]["metrics"]["sqnr_db"] > 100
    assert "rows.npy against right.npz" in cli("verify", "art", "-i", "rows.npy", "--expected", "right.npz").out


def test_verify_notices_that_they_differ(cli, own):
    result = cli("verify", "art", "--input", "rows.npy", "--expected", "wrong.npy")
    assert result.code == 6 and "gives other outputs for rows.npy than wrong.npy has" in result.err


@pytest.mark.parametrize("other", ["short", "long", "wide", "flat", "words", "whole"])
def test_verify_refuses_outputs_of_another_form(cli, own, toy, other):
    right = ROWS @ toy.MATRIX
    arrays = {"short": right[:2], "long": np.concatenate([right, right]), "wide": ROWS, "flat": right.reshape(-1)}
    arrays |= {"words": np.array(["a"]), "whole": right.astype(np.int64)}
    np.savez("other.npz", output=arrays[other])
    result = cli("verify", "art", "--input", "rows.npy", "--expected", "other.npz")
    assert result.code == 2, result.err
    assert "for rows.npy the artifact gives float32[6, 3]" in result.err and "deploykit run" in result.err


def test_verify_notes_outputs_that_the_model_does_not_give(cli, own, toy):
    np.savez("more.npz", output=ROWS @ toy.MATRIX, more=ROWS)
    result = cli("verify", "art", "--input", "rows.npy", "--expected", "more.npz")
    assert result.code == 0 and "more, which the model does not give" in result.err


def test_verify_wants_both(cli, own):
    result = cli("verify", "art", "--input", "rows.npy")
    assert result.code == 2 and "go together" in result.err


# -- options ----------------------------------------------------------------------------------------------------------


def test_a_drop_of_no_metric_is_an_error(cli, artifact):
    result = cli("export", "m:f", "--target", "toy-board", "--max-drop", "0.1")
    assert result.code == 2 and "--max-drop needs --evaluate" in result.err


@pytest.mark.parametrize(("typed", "meant"), [("INT8", "did you mean int8?"), ("half", "did you mean fp16?")])
def test_precisions_by_other_words(cli, toy, typed, meant):
    result = cli("export", "m:f", "--target", "toy-board", "--precision", typed)
    assert result.code == 2 and meant in result.err and "int8-dynamic" in result.err


def test_completion_offers_commands_targets_and_precisions(toy, capfd, monkeypatch):
    for words, offered in (("deploykit ex", "export"), ("deploykit export --precision int8-w", "int8-weight-only")):
        monkeypatch.setenv("_DEPLOYKIT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit):
            main([])
        assert offered in capfd.readouterr().out.split()


def test_completion_can_be_shown(cli):
    assert "--install-completion" in cli("--help").out


def test_targets_fit_eighty_columns(cli, toy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("targets").out.splitlines()
    table = [line for line in lines if not line.startswith("  ")]
    assert max(map(len, table)) <= 80
    assert any(line.strip().startswith("absent, to export: pip install") for line in lines)


def test_the_program_says_its_version_from_a_module_too(cli):
    assert os.environ.get("_DEPLOYKIT_COMPLETE") is None
    assert cli("--version").out.startswith("deploykit ")
