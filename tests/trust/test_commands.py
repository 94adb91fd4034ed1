"""The commands of trust: what they print, write and end with."""

import json

import pytest

from deploykit.cli import main


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Pages are not wrapped: what is looked for stands on one line."""
    monkeypatch.setenv("COLUMNS", "400")


def run(capsys, *words):
    code = main(list(map(str, words)))
    done = capsys.readouterr()
    return code, done.out, done.err


def document(capsys, *words):
    code, out, err = run(capsys, *words, "--json")
    return code, json.loads(out), err


def test_sign_and_verify(artifact, keys, capsys):
    code, found, _ = document(capsys, "sign", artifact, "--key", keys["private"], "--no-source")
    assert (code, found["source"]) == (0, None) and "manifest.json" in found["files"]
    code, out, _ = run(capsys, "verify", artifact, "--key", keys["public"])
    assert code == 0 and "every file is signed by" in out and "0" * 64 in out
    code, found, _ = document(capsys, "inspect", artifact, "--key", keys["public"])
    assert code == 0 and found["lineage"]["recipe"] == "1" * 64
    code, found, _ = document(capsys, "verify", artifact)
    assert code == 0 and found["lineage"] is None


@pytest.mark.parametrize("command", ["verify", "inspect", "profile", "sbom", "build"])
def test_a_key_that_signed_nothing_ends_every_command_with_9(artifact, keys, capsys, command):
    code, found, err = document(capsys, command, artifact, "--key", keys["public"])
    assert code == 9 and "is not signed: it has no model.sig" in found["error"]["message"] and "error:" in err


def test_run_asks_for_the_key_before_it_runs(artifact, keys, capsys, tmp_path):
    import numpy as np

    np.savez(tmp_path / "x.npz", x=np.ones((1, 4), np.float32))
    words = ("run", artifact, "-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    code, _, err = run(capsys, *words, "--key", keys["public"])
    assert code == 9 and "not signed" in err and not (tmp_path / "y.npz").exists()
    run(capsys, "sign", artifact, "--key", keys["private"])
    assert run(capsys, *words, "--key", keys["public"])[0] == 0


def test_native_code_is_refused_and_allowed(artifact, toy, capsys, monkeypatch):
    monkeypatch.setattr(toy.ToyTarget, "native_code", lambda self, artifact: "the machine code in matrix.npy")
    code, _, err = run(capsys, "verify", artifact)
    assert code == 9 and "--allow-native" in err
    assert run(capsys, "verify", artifact, "--allow-native")[0] == 0


def test_push_and_pull(artifact, registry, keys, capsys, tmp_path):
    run(capsys, "sign", artifact, "--key", keys["private"])
    reference = f"{registry.host}/team/net:v1"
    code, sent, _ = document(capsys, "push", artifact, reference, "--key", keys["public"])
    assert code == 0 and len(sent["sent"]) == 7
    code, found, _ = document(capsys, "pull", sent["pinned"], "-o", tmp_path / "got", "--key", keys["public"])
    assert code == 0 and found["digest"] == sent["digest"] and found["signed"]
    code, out, _ = run(capsys, "pull", reference, "-o", tmp_path / "got")
    assert code == 0 and "not asked for (--key)" in out and sent["pinned"] in out
    code, _, err = run(capsys, "pull", reference, "-o", tmp_path / "other", "--key", keys["other"])
    assert code == 9 and "another key" in err and not (tmp_path / "other").exists()
    assert run(capsys, "pull", "no-host")[0] == 2
    assert run(capsys, "pull", f"{registry.host}/team/net:none", "-o", tmp_path / "none")[0] == 10


def test_sbom(artifact, capsys, tmp_path):
    code, out, _ = run(capsys, "sbom", artifact)
    assert code == 0 and json.loads(out)["specVersion"] == "1.6"
    code, out, _ = run(capsys, "sbom", artifact, "-o", tmp_path / "bom.json")
    assert code == 0 and json.loads((tmp_path / "bom.json").read_text()) == document(capsys, "sbom", artifact)[1]
    assert run(capsys, "sbom", artifact, "-o", artifact)[0] == 2


def test_without_the_package_the_command_says_what_to_install(artifact, keys, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cryptography", None)
    for words in (("sign", artifact, "--key", keys["private"]), ("verify", artifact, "--key", keys["public"])):
        code, _, err = run(capsys, *words)
        assert code == 3 and "error: cryptography is needed to sign" in err and '[trust]"' in err
