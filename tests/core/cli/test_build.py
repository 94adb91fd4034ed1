"""`deploykit build`: an artifact that is finished on its device."""

from dataclasses import replace

import numpy
import pytest

from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.errors import UsageError
from deploykit.plugin.artifact import load


@pytest.fixture
def pending(toy, artifact):
    build = PendingBuild("deploykit build .", "only the device can")
    return toy.write_artifact(artifact.path.with_name("pending"), build=build, status="needs device build")


def test_build(cli, pending):
    result = cli("build", "pending")
    assert result.code == 0, result.err
    assert "verified" in result.out and "pending-built" in result.out
    built = load("pending-built")
    assert built.manifest.parent == pending.fingerprint and built.manifest.build is None


def test_document_and_options(cli, pending):
    document = cli("build", "pending", "-o", "out/b", "--option", "gain=1", "--no-profile", "--json").document
    assert document["entry"] == "built.npy" and document["profile"] is None
    assert document["tool_versions"]["toy-compiler"] == "2.0"
    assert load("out/b").manifest.parent == pending.fingerprint


def test_a_device_that_computes_something_else(cli, pending):
    arguments = ["build", "pending", "-o", "b", "--option", "gain=7", "--no-profile"]
    result = cli(*arguments)
    assert result.code == 6 and "b.failed" in result.err
    kept = cli(*arguments, "--no-strict", "--json")
    assert kept.code == 0 and kept.document["status"] == "failed" and "marked failed" in kept.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["art"], 2, "needs no build"),
        (["pending", "--option", "gian=1"], 2, "unknown option gian"),
        (["nowhere"], 9, "no such folder"),
    ],
)
def test_refusals(cli, pending, arguments, code, words):
    result = cli("build", *arguments)
    assert result.code == code and words in result.err and "Traceback" not in result.err


def test_the_command_is_shown_with_the_artifact_s_own_path(cli, pending):
    page = cli("inspect", "pending")
    assert "deploykit build pending" in page.out
    numpy.savez(pending.path.with_name("x.npz"), x=numpy.ones((1, 4), numpy.float32))
    refused = cli("run", "pending", "-i", "x.npz", "-o", "y.npz")
    assert refused.code == 10 and f"deploykit build {pending.path}" in refused.err


def test_options_are_checked_against_the_device_and_recorded(cli, toy, pending, monkeypatch):
    def check(self, options, device):
        if options.gain > 5:
            raise UsageError(f"gain={options.gain}: {device.name} has up to 5")

    monkeypatch.setattr(toy.ToyTarget, "check_options", check)
    refused = cli("build", "pending", "--option", "gain=7", "--no-profile")
    assert refused.code == 2 and "toy-board has up to 5" in refused.err
    assert not pending.path.with_name("pending-built").exists()
    assert cli("build", "pending", "--option", "gain=1", "--no-profile").code == 0
    assert load("pending-built").manifest.options["gain"] == 1.0
    refused = cli("export", "m:f", "--target", "toy-board", "--option", "gain=7")
    assert refused.code == 2 and "toy-board has up to 5" in refused.err


def test_only_an_artifact_is_replaced_and_never_the_one_that_is_built(cli, pending):
    mine = pending.path.with_name("mine")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    result = cli("build", "pending", "-o", "mine")
    assert result.code == 9 and "is not an artifact; it is left alone" in result.err
    assert (mine / "notes.txt").read_text() == "mine"
    result = cli("build", "pending", "-o", "pending")
    assert result.code == 2 and "left as it is" in result.err
    assert load("pending").fingerprint == pending.fingerprint


@pytest.mark.parametrize(
    ("asked", "macs", "code"),
    [
        (None, {"int8": 8, "float32": 8}, 0),
        (None, {"int8": 7, "float32": 9}, 8),
        (None, {"int8": 7, "unknown": 9}, 0),  # what the builder does not tell of is held against it only when asked
        (0.5, {"int8": 7, "unknown": 9}, 8),
        (0.9, {"int8": 8, "float32": 8}, 8),
        (0.4, {"int8": 7, "float32": 9}, 0),
    ],
)
def test_what_the_builder_left_in_another_precision_is_gated_as_on_export(
    cli, toy, pending, monkeypatch, asked, macs, code
):
    build = toy.ToyTarget._build

    def otherwise(self, *arguments):
        payload = build(self, *arguments)
        layers = [LayerAchieved(name, name, "linear", name, macs=count) for name, count in macs.items()]
        return replace(payload, achieved=Achieved.count("int8", layers, source="the builder"))

    monkeypatch.setattr(toy.ToyTarget, "_build", otherwise)
    fields = {"build": pending.manifest.build, "status": pending.status, "min_placement": asked}
    toy.write_artifact(pending.path.with_name("asked"), **fields)
    result = cli("build", "asked", "-o", "b", "--no-profile")
    assert result.code == code, result.err
    if code:
        assert "multiply-accumulates" in result.err and load("b.failed").status == "failed"
    kept = cli("build", "asked", "-o", "c", "--no-profile", "--no-strict", "--json")
    assert kept.document["status"] == ("failed" if code else "verified")
