"""The layout of a Hugging Face repository, and snapshots of the Hub's client, which are links."""

import json
import shutil

import pytest

import deploykit
from deploykit.contract.errors import ArtifactError, UsageError
from deploykit_trust.huggingface import _cell, read_folder, write_folder
from deploykit_trust.signing import sign


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def snapshot(repository, cache):
    """What `snapshot_download` gives: every file a link to a blob in the client's cache."""
    folder = cache / "snapshots" / "0"
    for number, path in enumerate(sorted(path for path in repository.rglob("*") if path.is_file())):
        blob = cache / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = folder / path.relative_to(repository)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder


@pytest.fixture
def repository(artifact, keys, tmp_path):
    sign(artifact, keys["private"])
    return write_folder(artifact, tmp_path / "repo", license="apache-2.0", base_model="team/model")


def test_a_repository_and_back(artifact, repository, keys, tmp_path):
    assert contents(repository / "artifact") == contents(artifact)
    card = (repository / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: deploykit\ntags:\n- deploykit\nlicense: apache-2.0\nbase_model: team/model\n---"
    )
    assert "| SQNR | 34.5 dB |" in card and "| inputs | x float32[1, 4] |" in card
    assert "*.onnx filter=lfs" in (repository / ".gitattributes").read_text()
    for number, folder in enumerate((repository, snapshot(repository, tmp_path / "hub"))):
        found = read_folder(folder, tmp_path / f"got{number}", key=keys["public"])
        assert contents(found.path) == contents(artifact)
        assert not any(path.is_symlink() for path in found.path.rglob("*"))


def test_writing_again_replaces_ours_and_keeps_what_is_yours(artifact, repository, toy, tmp_path):
    (repository / "notes.md").write_text("mine")
    toy.write_artifact(tmp_path / "second", tool_versions={"toy": "2.0"})
    write_folder(tmp_path / "second", repository)
    assert (repository / "notes.md").read_text() == "mine"
    assert deploykit.load(repository / "artifact").manifest.tool_versions == {"toy": "2.0"}
    (repository / "artifact" / "notes.md").write_text("mine")
    with pytest.raises(ArtifactError, match="which deploykit did not write; it is left alone"):
        write_folder(artifact, repository)


def test_what_is_damaged_or_foreign_is_refused(repository, keys, tmp_path):
    with pytest.raises(ArtifactError, match="holds no artifact"):
        read_folder(tmp_path, tmp_path / "got")
    with pytest.raises(ArtifactError, match="another key"):
        read_folder(repository, tmp_path / "got", key=keys["other"])
    path = repository / "artifact" / "matrix.npy"
    whole = path.read_bytes()
    for data in (whole[:-1] + b"\0", whole + b"\0" * 100, b""):
        path.write_bytes(data)
        with pytest.raises(ArtifactError):
            read_folder(repository, tmp_path / "got")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match="is not a regular file"):
        read_folder(repository, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_the_card_shows_what_a_manifest_says_and_does_not_do_it():
    assert _cell("toy\n\n# <img src=x>|\x1b[2J") == "toy # &lt;img src=x&gt;/\\x1b[2J"


def test_a_file_that_is_to_be_a_folder_too_is_refused(repository, tmp_path):
    path = repository / "artifact" / "manifest.json"
    manifest = json.loads(path.read_text())
    (name,) = (one for one in manifest["files"] if one["path"] == "matrix.npy")
    manifest["files"] = [*manifest["files"], {**name, "path": "convert"}, {**name, "path": "convert/" + "x" * 200}]
    path.write_text(json.dumps(manifest))
    (repository / "artifact" / "convert").write_bytes((repository / "artifact" / "matrix.npy").read_bytes())
    with pytest.raises(ArtifactError, match=r"cannot read|cannot write"):
        read_folder(repository, tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("given", [{"license": "mit\nx: y"}, {"base_model": "a: b"}, {"license": "[x]"}])
def test_a_field_of_the_header_stays_one(artifact, tmp_path, given):
    with pytest.raises(UsageError, match="is no name of the Hub's"):
        write_folder(artifact, tmp_path / "repo", **given)
