"""`deploykit build`: an artifact that is finished on its device."""

import pytest

from deploykit.artifact import load
from deploykit.manifest import PendingBuild


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
