"""Only what deploykit wrote, whole and with nothing else in it, is replaced; the rest is refused by name, untouched."""

import json
import os
from pathlib import Path

import pytest

from deploykit.artifact.replace import replaceable
from deploykit.contract.errors import ArtifactError
from deploykit.plugin.artifact import load


def extension(folder: Path) -> None:
    (folder / "src").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"manifest_version": 3, "name": "mine", "version": "1.0"}))
    (folder / "src" / "page.js").write_text("x")


def repository(folder: Path) -> None:
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")


def project(folder: Path) -> None:
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[project]")


FOREIGN = {"extension": extension, "repository": repository, "project": project, "file": lambda path: path.touch()}


def repository_of_profiles(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "profile.json").write_text("{}")


INTRUDERS = {
    "notes.txt": lambda folder: (folder / "notes.txt").write_text("mine"),
    ".git/": repository,
    "src/": lambda folder: (folder / "src").mkdir(),
    "link": lambda folder: (folder / "link").symlink_to("/etc/hostname"),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "MANIFEST.json": lambda folder: (folder / "MANIFEST.json").write_text("{}"),
    "deep/profile.json": repository_of_profiles,
}


def snapshot(folder: Path) -> dict[str, object]:
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in paths}


@pytest.mark.parametrize("suffix", ["", ".failed"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_folder_is_refused_and_untouched(tmp_path, kind, suffix):
    FOREIGN[kind](tmp_path / f"out{suffix}")
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError, match="is not an artifact; it is left alone") as caught:
        replaceable(tmp_path / "out")
    assert f"out{suffix}" in caught.value.message and snapshot(tmp_path) == before


@pytest.mark.parametrize("name", INTRUDERS)
def test_what_lies_in_an_artifact_and_is_not_ours_is_named(toy, tmp_path, name):
    folder = toy.write_artifact(tmp_path / "out", profile=toy.make_profile()).path
    assert replaceable(folder) == folder
    INTRUDERS[name](folder)
    before = snapshot(folder)
    with pytest.raises(ArtifactError, match="which deploykit did not write") as caught:
        replaceable(folder)
    assert name.partition("/")[0] in caught.value.message and snapshot(folder) == before


def test_what_may_lie_in_a_loaded_artifact_does_not_stop_a_new_export(toy, tmp_path):
    folder = toy.write_artifact(tmp_path / "out").path
    for name in (".DS_Store", "timing.cache", "convert.log", "cache/deep/kernel"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left there")
    assert load(folder).path == folder and replaceable(folder) == folder


def test_an_artifact_that_was_edited_is_no_longer_ours_alone(toy, tmp_path):
    folder = toy.write_artifact(tmp_path / "out").path
    (folder / "matrix.npy").write_bytes(b"my own weights")
    with pytest.raises(ArtifactError, match=r"matrix\.npy is not as deploykit wrote it"):
        replaceable(folder)


@pytest.mark.parametrize("name", ["x" * 255, "a\0b", "..", "x" * 250])
def test_names_that_cannot_be_written(tmp_path, name):
    with pytest.raises(ArtifactError):
        replaceable(tmp_path / name)


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        replaceable("out")
