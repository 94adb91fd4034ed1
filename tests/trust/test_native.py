"""Native code of an artifact runs where it was made, after a signature, or with an explicit flag; and nowhere else."""

import hashlib
import os
import shutil

import pytest

import deploykit
from deploykit.artifact import made
from deploykit.contract.errors import ArtifactError
from deploykit.places.first import Risk
from deploykit_trust.signing import sign


@pytest.fixture
def native(artifact, toy, monkeypatch):
    """An artifact from elsewhere whose payload is machine code, says its target; a file tells whether it was opened."""
    opened = []
    monkeypatch.setattr(made, "_known", set())
    monkeypatch.setattr(toy.ToyTarget, "native_code", lambda self, artifact: "the machine code in matrix.npy")
    real = toy.ToyTarget._open
    monkeypatch.setattr(
        toy.ToyTarget, "_open", lambda self, *args: opened.append(args[0].path.name) or real(self, *args)
    )
    return artifact, opened


def test_from_elsewhere_it_is_refused_with_what_to_do(native):
    folder, opened = native
    found = deploykit.load(folder)
    expected = (
        r"opening net runs the machine code in matrix.npy, and it was not made here(.|\n)*--key(.|\n)*--allow-native"
    )
    for act in (found.open, found.verify, lambda: found.plugin().profile(found)):
        with pytest.raises(ArtifactError, match=expected):
            act()
    assert not opened


def test_with_a_signature_it_is_opened(native, keys):
    folder, opened = native
    sign(folder, keys["private"])
    with deploykit.load(folder, key=keys["public"]).open():
        pass
    with pytest.raises(ArtifactError, match="not made here"):  # a signature that nobody checked says nothing
        deploykit.load(folder).open()
    assert opened == ["net"]


def test_with_the_flag_it_is_opened_and_the_flag_is_not_remembered(native):
    folder, opened = native
    with deploykit.load(folder, allow_native=True).open():
        pass
    with pytest.raises(ArtifactError, match="not made here"):
        deploykit.load(folder).open()
    assert opened == ["net"]


def test_what_was_made_here_is_opened_in_any_process_and_in_any_folder(native, tmp_path, monkeypatch):
    folder, opened = native
    made.remember((folder / "manifest.json").read_bytes())
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(made, "_known", set())  # another process
    with deploykit.load(copy).open():
        pass
    assert opened == ["copy"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no owners of files")
def test_a_mark_that_another_account_made_or_a_link_says_nothing(native, state, monkeypatch):
    folder, opened = native
    mark = state / "made" / hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    mark.parent.mkdir(parents=True)
    mark.touch()
    own = os.geteuid()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: own + 1)
        with pytest.raises(ArtifactError, match="not made here"):
            deploykit.load(folder).open()
    mark.unlink()
    mark.symlink_to("/etc/hosts")
    with pytest.raises(ArtifactError, match="not made here"):
        deploykit.load(folder).open()
    mark.unlink()
    mark.touch()
    with deploykit.load(folder).open():
        pass
    assert opened == ["net"]


def test_another_manifest_over_the_same_payload_was_not_made_here(native, toy):
    folder, opened = native
    made.remember((folder / "manifest.json").read_bytes())
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"gain": 1.0', '"gain": 2.0'))
    with pytest.raises(ArtifactError, match="not made here"):
        deploykit.load(folder).open()
    assert not opened


def test_where_no_state_can_be_kept_this_process_opens_what_it_made(native, monkeypatch, tmp_path):
    folder, opened = native
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPLOYKIT_STATE", str(tmp_path / "file"))
    made.remember((folder / "manifest.json").read_bytes())
    with deploykit.load(folder).open():
        pass
    monkeypatch.setattr(made, "_known", set())
    with pytest.raises(ArtifactError, match="not made here"):
        deploykit.load(folder).open()
    assert opened == ["net"]


def test_the_permission_goes_with_the_artifact_to_its_place(native):
    from deploykit.places import Here

    folder, opened = native
    with deploykit.load(folder, allow_native=True).at(Here(first=False)).open():
        pass
    with pytest.raises(ArtifactError, match="not made here"):
        deploykit.load(folder).open(place=Here(first=False))
    assert opened == ["net"]


def test_machine_code_is_native_without_another_word(artifact, toy, monkeypatch):
    """A plugin that says that its payload may crash because it is code need say nothing else."""
    monkeypatch.setattr(made, "_known", set())
    monkeypatch.setattr(toy.ToyTarget, "risk", lambda self, artifact: Risk.CODE)
    with pytest.raises(ArtifactError, match=r"runs the machine code in matrix\.npy"):
        deploykit.load(artifact).open()
    monkeypatch.setattr(toy.ToyTarget, "risk", lambda self, artifact: Risk.READER)
    with deploykit.load(artifact).open():
        pass


def test_a_build_program_from_elsewhere_is_not_run(toy, tmp_path, monkeypatch, keys):
    from deploykit.artifact.manifest import PendingBuild

    monkeypatch.setattr(made, "_known", set())
    monkeypatch.setattr(toy.ToyTarget, "build_code", lambda self, artifact: "its build program")
    waiting = {"status": "needs device build", "build": PendingBuild("deploykit build .", "build it there")}
    toy.write_artifact(tmp_path / "net", **waiting)
    with pytest.raises(ArtifactError, match="building net runs its build program, and it was not made here"):
        deploykit.build(tmp_path / "net", profile=False)
    sign(tmp_path / "net", keys["private"])
    built = deploykit.build(tmp_path / "net", key=keys["public"], profile=False)
    assert built.manifest.parent and made.is_own(built)
