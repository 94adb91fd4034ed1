"""A store shows whole things only, tells who is at work in it, and collects what nobody needs."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid

import msgspec
import pytest

from deploykit.contract.errors import ArtifactError, UsageError
from deploykit_fleet import lease, outcome, writing
from deploykit_fleet.collect import gc
from deploykit_fleet.outcome import Cell, Release
from deploykit_fleet.store import Finished, Store, relative


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def _artifact(folder, payload: bytes) -> str:
    """A folder that looks like an artifact; returns its fingerprint."""
    folder.mkdir()
    (folder / "model.bin").write_bytes(payload)
    entry = {"path": "model.bin", "size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    manifest = json.dumps({"files": [entry]}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


def _cell(store, number: int) -> Cell:
    fingerprint = _artifact(store.root.parent / f"made-{number}", b"x" * (number + 1))
    store.keep(store.root.parent / f"made-{number}", fingerprint)
    cell = Cell(
        model="m",
        target="t",
        precision=f"p{number}",
        key=f"{number:064x}",
        status="passed",
        artifact=relative(fingerprint),
        fingerprint=fingerprint,
    )
    store.finish(Finished(cell=cell))
    return cell


def _release(store, number: int, *cells: Cell, name: str = "edge") -> None:
    made = Release(deploykit="1", name=name, started=f"2026-01-{number:02}T00:00:00Z", host="h", cpu="c", cells=cells)
    moved = [msgspec.structs.replace(cell, artifact=f"../../{cell.artifact}") for cell in cells]
    outcome.write(msgspec.structs.replace(made, cells=tuple(moved)), store.releases / f"202601{number:02}T000000Z-0")
    outcome.write(made, store.root)


def test_a_finished_cell_is_found_as_long_as_its_artifact_is_whole(store):
    cell = _cell(store, 0)
    assert store.finished(cell.key).cell == cell
    path = store.object(cell.fingerprint) / "model.bin"
    path.write_bytes(b"")
    assert store.finished(cell.key) is None
    path.unlink()
    assert store.finished(cell.key) is None
    assert store.finished("f" * 64) is None


def test_a_damaged_record_counts_as_none_and_is_written_again(store):
    cell = _cell(store, 0)
    (store.cells / f"{cell.key}.json").write_text("{")
    assert store.finished(cell.key) is None
    store.finish(Finished(cell=cell))
    assert store.finished(cell.key) is not None


def test_the_same_content_lies_in_the_store_once_and_a_damaged_one_is_replaced(store, tmp_path):
    cell = _cell(store, 0)
    again = _artifact(tmp_path / "again", b"x")
    assert again == cell.fingerprint
    store.keep(tmp_path / "again", again)
    assert len(list(store.objects.iterdir())) == 1
    (store.object(again) / "model.bin").write_bytes(b"damaged")
    _artifact(tmp_path / "third", b"x")
    store.keep(tmp_path / "third", again)
    assert store.holds(again) and not list(store.work.iterdir())


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(ArtifactError, match="no store of deploykit"):
        Store(tmp_path).prepare()
    with pytest.raises(ArtifactError, match="no store"):
        gc(tmp_path)


def test_an_artifact_that_cannot_be_moved_in_is_an_error(store, tmp_path):
    with pytest.raises(ArtifactError, match="cannot keep"):
        store.keep(tmp_path / "absent", "a" * 64)


# -- leases


def test_who_works_here_is_alive_and_what_the_dead_left_is_removed(store):
    code = (
        "import os, sys; from pathlib import Path; from deploykit_fleet import lease\n"
        "with lease.held(Path(sys.argv[1]), 'release', ['k']) as own:\n"
        "    (own / 'half').mkdir(); print(own.name, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(store.work)], stdin=-1, stdout=-1, text=True) as process:
        name = process.stdout.readline().strip()
        ((path, found),) = lease.living(store.work)
        assert path.name == name and found.keys == ("k",) and not lease.sweep(store.work)
        process.kill()
        process.wait()
        assert not lease.living(store.work)
        assert [path.name for path in lease.sweep(store.work)] == [name]
    assert not list(store.work.iterdir())


@pytest.mark.parametrize(("host", "boot"), [("elsewhere", "b"), (socket.gethostname(), "another boot")])
def test_another_machine_is_judged_by_its_beat_and_never_by_a_process_id(store, host, boot):
    folder = store.work / "theirs"
    folder.mkdir()
    path = folder / lease.NAME
    path.write_bytes(msgspec.json.encode(lease.Lease(kind="release", host=host, boot=boot)))
    assert lease.living(store.work) and not lease.sweep(store.work)
    old = time.time() - lease.EXPIRY_S - 5
    os.utime(path, (old, old))
    assert not lease.living(store.work) and lease.sweep(store.work) == [folder]


def test_a_folder_without_a_lease_is_in_the_making_until_it_is_old(store):
    folder = store.work / "new"
    folder.mkdir()
    assert not lease.sweep(store.work)
    old = time.time() - lease.EXPIRY_S - 5
    os.utime(folder, (old, old))
    assert lease.sweep(store.work) == [folder]


# -- collection


def test_the_newest_releases_keep_what_they_refer_to(store):
    cells = [_cell(store, number) for number in range(7)]
    for number in range(7):
        _release(store, number + 1, cells[number], cells[0])
    found = gc(store.root, 5)
    assert (found.releases, found.cells, found.objects, found.kept) == (2, 1, 1, 5)
    assert store.finished(cells[1].key) is None and not store.object(cells[1].fingerprint).exists()
    assert all(store.finished(cell.key) for cell in (cells[0], *cells[2:]))
    for path in store.releases.iterdir():
        for cell in outcome.read(path).cells:
            assert (path / cell.artifact / "manifest.json").is_file()
    again = gc(store.root, 5)
    assert (again.releases, again.cells, again.objects) == (0, 0, 0)


def test_releases_of_each_name_are_counted_by_themselves(store):
    cells = [_cell(store, number) for number in range(3)]
    _release(store, 1, cells[0], name="a")
    _release(store, 2, cells[1], name="b")
    _release(store, 3, cells[2], name="b")
    assert gc(store.root, 1).releases == 1
    assert store.finished(cells[0].key) and not store.finished(cells[1].key) and store.finished(cells[2].key)


def test_what_a_running_release_relies_on_stays(store):
    old, new = _cell(store, 0), _cell(store, 1)
    _release(store, 1, new)
    with lease.held(store.work, "release", [old.key]):
        gc(store.root, 1)
    assert store.finished(old.key)
    gc(store.root, 1)
    assert not store.finished(old.key) and store.finished(new.key)


def test_two_collections_at_once_are_refused_and_a_release_waits_for_one(store):
    with lease.held(store.work, "gc"):
        with pytest.raises(ArtifactError, match="another collection"):
            gc(store.root)
        with pytest.raises(ArtifactError, match="gc has been at work"):
            lease.wait_while(store.work, "gc", timeout_s=0.1)
    lease.wait_while(store.work, "gc")


def test_a_release_that_cannot_be_read_keeps_its_folder(store):
    folder = store.releases / "20260101T000000Z-x"
    folder.mkdir()
    (folder / "release.json").write_text("{}")
    gc(store.root, 1)
    assert folder.exists()


def test_what_a_run_left_that_was_killed_while_it_wrote_its_release_goes_when_it_is_old(store, monkeypatch):
    left, theirs = store.releases / "20260101T000000Z-0123abcd", store.releases / "notes"
    for folder in (left, theirs):
        (folder / "logs").mkdir(parents=True)
    gc(store.root)
    assert left.exists()
    monkeypatch.setattr("deploykit_fleet.collect._YOUNG_S", -1.0)
    gc(store.root)
    assert not left.exists() and theirs.exists()


def test_the_newest_run_stays_the_newest_where_the_clock_was_set_back(store):
    for number, day in enumerate((10, 5, 5)):
        cells = (_cell(store, number),)
        started = datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)
        work = store.work / uuid.uuid4().hex
        work.mkdir()
        for _ in range(2):  # the second brings nothing new
            writing.write(writing.described("edge", cells, "pool", started, 1.0), store, work, started)
    (store.releases / "notes").mkdir()
    assert len(list(store.releases.iterdir())) == 4
    gc(store.root, 1)
    (left,) = store.releases.glob("2026*")
    assert outcome.read(left).cells[0].precision == "p2"


def test_what_a_release_of_a_newer_deploykit_refers_to_stays(store):
    cells = [_cell(store, number) for number in range(3)]
    for number, cell in enumerate(cells, 1):
        _release(store, number, cell)
    newer = store.releases / "20260101T000000Z-0" / "release.json"
    newer.write_text(newer.read_text().replace('"format": 1', '"format": 2'))
    gc(store.root, 1)
    assert [store.finished(cell.key) is not None for cell in cells] == [True, False, True]


def test_files_that_somebody_was_about_to_remove_go_when_they_are_old(store):
    old, new = store.work / ".trash-1", store.work / ".now-2"
    for path in (old, new):
        path.write_text("x")
    os.utime(old, (1.0, 1.0))
    lease.sweep(store.work)
    assert not old.exists() and new.exists()


def test_a_lease_is_never_there_without_its_lock(store, monkeypatch):
    lock, looking = fcntl.flock, []

    def look_first(descriptor, how):
        if not looking:
            looking.append(True)
            lease.sweep(store.work)
        lock(descriptor, how)

    monkeypatch.setattr(lease.fcntl, "flock", look_first)
    with lease.held(store.work, "release") as own:
        assert looking
        lease.sweep(store.work)
        assert (own / lease.NAME).is_file()
        assert [path for path, _ in lease.living(store.work)] == [own]


def test_two_that_look_at_a_dead_lease_do_not_take_each_other_for_its_holder(store):
    host, boot = lease.here()
    left = store.work / "left"
    left.mkdir()
    (left / lease.NAME).write_bytes(msgspec.json.encode(lease.Lease(kind="gc", host=host, boot=boot)))
    with open(left / lease.NAME, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert lease.living(store.work) == []


def test_a_lease_that_cannot_be_written_is_an_error_and_leaves_nothing(store, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(ArtifactError, match="No space left"), lease.held(store.work, "release"):
        pass
    assert list(store.work.iterdir()) == []


def test_keeping_nothing_is_refused(store):
    with pytest.raises(UsageError, match="keep is 0"):
        gc(store.root, 0)
