"""`Artifact`: saving and loading is identity, and what is damaged, unsafe or too new is refused with the reason."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.artifact import manifest as layout
from deploykit.artifact import seal
from deploykit.artifact.golden import Golden, golden_bytes, golden_tolerance
from deploykit.artifact.manifest import Manifest, PendingBuild, check_relative
from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import ArtifactError, DeviceError, ParityError, UnknownTargetError, UsageError
from deploykit.contract.precision import Precision
from deploykit.judge.parity import TaskMetric
from deploykit.plugin.artifact import load


@pytest.fixture
def folder(toy, tmp_path) -> Path:
    return toy.write_artifact(tmp_path / "artifact", profile=toy.make_profile()).path


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / layout.MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reseal(folder: Path, name: str, data: bytes) -> None:
    """Replace a payload file and make the manifest agree, as a forger would."""
    (folder / name).write_bytes(data)
    entry = {"path": name, "size": len(data), "sha256": sha256_of(folder / name)}
    files = json.loads((folder / layout.MANIFEST_NAME).read_text())["files"]
    edit_manifest(folder, files=[entry if file["path"] == name else file for file in files])


# -- identity ---------------------------------------------------------------------------------------------------


def test_manifest_bytes_round_trip(toy):
    metric = TaskMetric(0.91, 0.9, 0.01)
    manifest = replace(
        toy.make_manifest(),
        parity=toy.make_parity(metric=metric, notes=("a note",)),
        build=PendingBuild("make", "no compiler here"),
        metadata={"nested": [1, {"a": None}]},
    )
    data = manifest.to_json()
    assert Manifest.from_json(data) == manifest
    assert Manifest.from_json(data).to_json() == data
    assert data.endswith(b"}\n") and list(json.loads(data)) == sorted(json.loads(data))


def test_loading_gives_back_what_was_written(toy, folder):
    artifact = load(folder)
    assert artifact.manifest == toy.write_artifact(folder.with_name("twin")).manifest
    assert artifact.path == folder.resolve()
    assert (artifact.target, artifact.precision, artifact.status) == ("toy-board", "int8", "verified")
    assert (artifact.inputs, artifact.outputs) == (toy.INPUTS, toy.OUTPUTS)
    assert artifact.parity == toy.make_parity()
    assert artifact.profile == toy.make_profile()
    assert artifact.entry == folder.resolve() / "matrix.npy"
    assert artifact.size_bytes == (folder / "matrix.npy").stat().st_size
    assert "toy-board int8 verified" in repr(artifact)


def test_summary_is_plain_data(folder):
    summary = json.loads(json.dumps(load(str(folder)).summary()))
    assert summary["path"] == str(folder.resolve()) and summary["status"] == "verified"
    assert summary["profile"]["worth_it"] == pytest.approx(2.0)


def test_a_folder_keeps_its_identity_when_moved(folder):
    before = load(folder).fingerprint
    moved = folder.rename(folder.with_name("moved"))
    assert load(moved).fingerprint == before
    assert load(moved).profile is not None


def test_golden_data_round_trips(toy, folder):
    golden = load(folder).golden()
    np.testing.assert_array_equal(golden.inputs[1]["x"], np.full((1, 4), -2.0, np.float32))
    np.testing.assert_array_equal(golden.outputs[0]["output"], np.ones((1, 4), np.float32) @ toy.MATRIX)


def test_golden_scalars_and_odd_names_survive(toy, folder):
    specs = (replace(toy.INPUTS[0], name="a.b", shape=()),)
    edit_manifest(folder, inputs=json.loads(json.dumps([{"name": "a.b", "shape": [], "dtype": "float32"}])))
    data = golden_bytes(Golden(({"a.b": np.array(3.0, np.float32)},), ({"output": np.zeros((1, 3), np.float32)},)))
    reseal(folder, layout.GOLDEN_NAME, data)
    sample = load(folder).golden().inputs[0]["a.b"]
    assert load(folder).inputs == specs
    assert sample.shape == () and sample == 3.0


# -- verify -----------------------------------------------------------------------------------------------------


def test_verify_reruns_golden_data(folder):
    metrics = load(folder).verify()
    assert metrics.max_abs == 0.0 and metrics.sqnr_db == 200.0


def test_verify_notices_another_result(toy, folder):
    golden = load(folder).golden()
    off = tuple({"output": sample["output"] * 1.5} for sample in golden.outputs)
    reseal(folder, layout.GOLDEN_NAME, golden_bytes(Golden(golden.inputs, off)))
    with pytest.raises(ParityError, match="other outputs here") as caught:
        load(folder).verify()
    assert caught.value.candidate.path == folder.resolve()
    assert caught.value.report == toy.make_parity()


def test_verify_notices_damage_after_loading(folder):
    artifact = load(folder)
    (folder / "matrix.npy").write_bytes(b"x" * (folder / "matrix.npy").stat().st_size)
    with pytest.raises(ArtifactError, match="sha256"):
        artifact.verify()


@pytest.mark.parametrize("precision", Precision)
def test_golden_tolerance_is_never_below_the_gate_of_the_precision(precision):
    assert golden_tolerance(precision).min_sqnr_db >= 30.0


def test_an_artifact_that_must_be_built_first_does_not_open(folder):
    edit_manifest(folder, build={"command": "make -C here", "reason": "no compiler here"}, status="needs device build")
    with pytest.raises(DeviceError, match="no compiler here") as caught:
        load(folder).open()
    assert caught.value.hint == "make -C here"


def test_an_artifact_of_an_unknown_toolchain_does_not_open(folder):
    edit_manifest(folder, toolchain="somebody-elses")
    with pytest.raises(UnknownTargetError, match="somebody-elses"):
        load(folder).open()


# -- refusals ---------------------------------------------------------------------------------------------------


def test_not_an_artifact(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file", tmp_path / ("n" * 300)):
        with pytest.raises(ArtifactError):
            load(path)


@pytest.mark.parametrize("position", [0, 10, -1])
def test_an_altered_byte_is_noticed(folder, position):
    data = bytearray((folder / "matrix.npy").read_bytes())
    data[position] ^= 1
    (folder / "matrix.npy").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"matrix\.npy does not match its sha256"):
        load(folder)


def test_a_truncated_file_is_noticed(folder):
    data = (folder / layout.GOLDEN_NAME).read_bytes()
    (folder / layout.GOLDEN_NAME).write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=f"{len(data) - 1} bytes, the manifest says {len(data)}"):
        load(folder)


def test_a_missing_file_is_noticed(folder):
    (folder / "matrix.npy").unlink()
    with pytest.raises(ArtifactError, match=r"matrix\.npy is missing"):
        load(folder)


def test_links_are_refused(folder, tmp_path):
    real = (folder / "matrix.npy").rename(tmp_path / "elsewhere.npy")
    (folder / "matrix.npy").symlink_to(real)
    with pytest.raises(ArtifactError, match="symbolic link"):
        load(folder)


def test_linked_folders_and_manifests_are_refused(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ArtifactError, match="symbolic link"):
        load(tmp_path / "link")
    real = (folder / layout.MANIFEST_NAME).rename(tmp_path / "manifest.json")
    (folder / layout.MANIFEST_NAME).symlink_to(real)
    with pytest.raises(ArtifactError, match="symbolic link"):
        load(folder)


def test_a_payload_folder_that_is_a_link_is_refused(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"1")
    (folder / "sub").symlink_to(outside)
    files = json.loads((folder / layout.MANIFEST_NAME).read_text())["files"]
    entry = {"path": "sub/file", "size": 1, "sha256": sha256_of(outside / "file")}
    edit_manifest(folder, files=[*files, entry])
    with pytest.raises(ArtifactError, match="symbolic link"):
        load(folder)


UNSAFE = [
    "../outside",
    "/etc/hostname",
    "a/../../b",
    "a/./b",
    "a//b",
    "",
    ".",
    "..",
    "C:x",
    "a\\b",
    "a\nb",
    "a\x00b",
    "a/",
    ".git/config",
    "a/.GIT/hooks/post-checkout",
]


@pytest.mark.parametrize("path", UNSAFE)
def test_paths_that_leave_the_folder_are_refused(folder, path):
    with pytest.raises(ArtifactError, match="unsafe path"):
        check_relative(path)
    files = json.loads((folder / layout.MANIFEST_NAME).read_text())["files"]
    for changes in ({"entry": path}, {"files": [{**files[0], "path": path}]}):
        edit_manifest(folder, **changes)
        with pytest.raises(ArtifactError, match="unsafe path"):
            load(folder)


@pytest.mark.parametrize("name", ["model.sig", "profile.json", "Manifest.json"])
def test_a_record_is_no_file_of_the_manifest(folder, name):
    """It would be replaced by the next signature or profile, and the artifact be damaged by that."""
    files = json.loads((folder / layout.MANIFEST_NAME).read_text())["files"]
    edit_manifest(folder, files=[*files, {**files[0], "path": name}])
    with pytest.raises(ArtifactError, match="is the name of a record"):
        load(folder)


@pytest.mark.parametrize(
    "path", ["a", ".gitignore", "a/b.bin", "..a", "a..b", "model.xml", "weights/0001.bin", "ünïcode"]
)
def test_ordinary_paths_are_fine(path):
    check_relative(path)


def test_an_entry_that_is_not_among_the_files_is_refused(folder):
    (folder / "unlisted.npy").write_bytes(b"x")
    edit_manifest(folder, entry="unlisted.npy")
    with pytest.raises(ArtifactError, match="entry"):
        load(folder)


@pytest.mark.parametrize("version", [layout.SCHEMA_VERSION + 1, 0, -1])
def test_another_schema_is_refused_even_if_the_rest_is_unreadable(folder, version):
    (folder / layout.MANIFEST_NAME).write_text(json.dumps({"schema_version": version, "future": True}))
    with pytest.raises(ArtifactError, match=f"schema version {version}"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", '{"schema_version": "1"}', '{"schema_version": 1}']
)
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / layout.MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load(folder)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / layout.MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "int3"},
        {"files": "all"},
        {"files": [{"path": "matrix.npy", "size": "1", "sha256": ""}]},
        {"inputs": [{"name": "x", "shape": [1.5], "dtype": "float32"}]},
        {"achieved": None},
        {"tool_versions": {"toy": 1}},
        {"parity": {"passed": "yes"}},
    ],
)
def test_fields_of_the_wrong_type_are_refused(folder, changes):
    edit_manifest(folder, **changes)
    with pytest.raises(ArtifactError, match=next(iter(changes))):
        load(folder)


def test_a_missing_field_is_refused(folder):
    data = json.loads((folder / layout.MANIFEST_NAME).read_text())
    del data["device"]
    (folder / layout.MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="device"):
        load(folder)


# -- golden data and records ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golden", "words"),
    [
        (b"garbage that is no safetensors", "cannot be read"),
        (golden_bytes(Golden((), ())), "no samples"),
        (golden_bytes(Golden(({"y": np.zeros((1, 4), np.float32)},), ())), "lacks tensor"),
        (golden_bytes(Golden(({"x": np.zeros((1, 5), np.float32)},), ())), "does not fit"),
    ],
    ids=["garbage", "no samples", "another name", "another shape"],
)
def test_damaged_golden_data_is_an_artifact_error(folder, golden, words):
    reseal(folder, layout.GOLDEN_NAME, golden)
    with pytest.raises(ArtifactError, match=words):
        load(folder).verify()


def test_a_profile_of_another_artifact_is_refused(folder):
    edit_manifest(folder, target="toy-board:toy")
    with pytest.raises(ArtifactError, match="another artifact"):
        load(folder).profile  # noqa: B018


def test_a_damaged_profile_is_refused_and_can_be_replaced(toy, folder):
    (folder / layout.PROFILE_NAME).write_text("{")
    artifact = load(folder)
    with pytest.raises(ArtifactError, match=r"profile\.json is damaged"):
        artifact.profile  # noqa: B018
    artifact.save_profile(toy.make_profile(runs=7))
    assert load(folder).profile.runs == 7


def test_saving_a_profile_leaves_the_identity_alone(toy, folder):
    before = load(folder).fingerprint
    load(folder).save_profile(toy.make_profile(runs=7))
    assert load(folder).fingerprint == before


def test_no_profile_is_none(toy, tmp_path):
    assert toy.write_artifact(tmp_path / "bare").profile is None


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_an_artifact_error(folder):
    (folder / "matrix.npy").chmod(0)
    with pytest.raises(ArtifactError, match="cannot read"):
        load(folder)


def test_golden_data_that_no_hash_vouches_for_is_refused(folder):
    files = json.loads((folder / layout.MANIFEST_NAME).read_text())["files"]
    edit_manifest(folder, files=[file for file in files if file["path"] != layout.GOLDEN_NAME])
    with pytest.raises(ArtifactError, match=r"does not list golden\.safetensors"):
        load(folder)


@pytest.mark.parametrize("dtype", ["float33", "O", ""])
def test_an_unknown_dtype_is_refused(folder, dtype):
    inputs = json.loads((folder / layout.MANIFEST_NAME).read_text())["inputs"]
    edit_manifest(folder, inputs=[{**inputs[0], "dtype": dtype}, *inputs[1:]])
    with pytest.raises(ArtifactError, match="unknown dtype"):
        load(folder)


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, 1_000_000])
def test_threads_that_no_runtime_can_start_are_refused(folder, threads):
    with pytest.raises(UsageError, match="threads must be a whole number from 1 to"):
        load(folder).open(threads=threads)


@pytest.mark.parametrize("name", ["json.py", "sub/resource.py", "__pycache__/board.pyc", ".hidden", "model.onnx.data"])
def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("print('run')")
    with pytest.raises(ArtifactError, match=f"{name} lies in .*does not list"):
        load(folder)


def test_options_of_a_wrong_type_are_refused(toy, folder):
    edit_manifest(folder, options={"gain": "much"})
    with pytest.raises(ArtifactError, match=r"options is not valid.*gain"):
        load(folder).manifest.chosen(toy.ToyOptions)


def test_an_unlisted_link_is_refused(folder):
    (folder / "link").symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match="link lies in"):
        load(folder)


def test_records_and_what_is_left_of_writing_one_may_be_there(folder):
    for name in (layout.LOG_NAME, ".profile.json.0123abcd.part", ".DS_Store", "model.engine", "timing.cache"):
        (folder / name).write_text("anything")
    (folder / "empty").mkdir()
    load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"target": "toy-old"}, {"device": "toy-old"}, {"target": "toy"}, {"target": "nothing"}, {"device": "nothing"}],
)
def test_target_device_and_toolchain_must_mean_the_same(folder, changes):
    edit_manifest(folder, **changes)
    with pytest.raises(ArtifactError, match="the manifest is for target"):
        load(folder)


def test_a_file_altered_between_load_and_open_is_refused(folder):
    artifact = load(folder)
    entry = folder / artifact.manifest.entry
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    found = entry.stat()
    entry.write_bytes(data)
    os.utime(entry, ns=(found.st_atime_ns, found.st_mtime_ns))  # the same size, and the same time of change
    with pytest.raises(ArtifactError, match="altered since it was loaded"):
        artifact.open()


def test_a_file_altered_while_it_is_opened_is_refused(folder, monkeypatch):
    artifact = load(folder)
    plugin, closed = artifact.plugin(), []
    opening = type(plugin)._open

    def altering(self, artifact, threads):
        session = opening(self, artifact, threads)
        (folder / artifact.manifest.entry).write_bytes(b"other")
        monkeypatch.setattr(session, "close", lambda: closed.append(1))
        return session

    monkeypatch.setattr(type(plugin), "_open", altering)
    with pytest.raises(ArtifactError, match="altered since it was loaded"):
        artifact.open()
    assert closed == [1]


def test_the_same_content_written_again_opens(folder):
    artifact = load(folder)
    entry = folder / artifact.manifest.entry
    entry.write_bytes(entry.read_bytes())
    artifact.open().close()


def test_an_export_that_ends_while_it_is_loaded_is_no_alteration(folder, tmp_path, monkeypatch):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    edit_manifest(other, options={"gain": 2.0})
    swaps, hashing = iter([1]), seal.sha256_of

    def swapping(path):
        if next(swaps, None):  # what an export does to the older artifact
            folder.rename(tmp_path / "older")
            other.rename(folder)
            shutil.rmtree(tmp_path / "older")
        return hashing(path)

    monkeypatch.setattr(seal, "sha256_of", swapping)
    assert load(folder).manifest.options == {"gain": 2.0}
