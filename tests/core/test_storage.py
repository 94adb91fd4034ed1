"""Files and folders that are whole or absent, whatever happens in between."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deploykit.artifact import storage
from deploykit.artifact.storage import publish_folder, sha256_of, staging_folder, write_file
from deploykit.contract.errors import ArtifactError


def export(destination: Path, content: str) -> None:
    with staging_folder(destination) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "payload").write_text(content)
        publish_folder(staging, destination)


def read(destination: Path) -> str:
    return (destination / "sub" / "payload").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["at once", "in turn"])
def way(request, monkeypatch):
    """Both ways of replacing a folder: Linux's exchange, and two renames elsewhere."""
    if request.param == "in turn":

        def refuse(*_):
            raise OSError(errno.ENOSYS, "not here")

        monkeypatch.setattr(storage, "_exchange_at_once", refuse)
    elif sys.platform != "linux":
        pytest.skip("only Linux exchanges two names in one step")
    return request.param


def stamp(*, machine: str | None = None, boot: str | None = None) -> str:
    """The name of something that nobody holds: of this machine and boot, or of others."""
    return f"{machine or storage._machine()}-{boot or storage._boot()}-0123456789ab"


def aged(path: Path) -> Path:
    """From before this machine was started."""
    os.utime(path, (1e9, 1e9))
    return path


def test_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


# -- single files -----------------------------------------------------------------------------------------------


def test_write_file_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "file"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and names(path.parent) == ["file"]


def test_write_file_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_write_file_notices_a_disk_that_lies(tmp_path, monkeypatch):
    write_file(tmp_path / "file", b"old")
    monkeypatch.setattr(storage, "sha256_of", lambda _: "another")
    with pytest.raises(ArtifactError, match="reads back differently"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_write_file_where_a_folder_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_file(tmp_path / "file" / "inside", b"new")


# -- folders ----------------------------------------------------------------------------------------------------


def test_publishes_and_replaces_and_leaves_nothing_else(tmp_path, way):
    for content in ("one", "two", "three"):
        export(tmp_path / "deep" / "model", content)
        assert read(tmp_path / "deep" / "model") == content
        assert names(tmp_path / "deep") == ["model"]


def test_an_empty_folder_is_taken(tmp_path, way):
    (tmp_path / "model").mkdir()
    export(tmp_path / "model", "one")
    assert read(tmp_path / "model") == "one"


def test_failing_before_publication_leaves_the_old_artifact(tmp_path, way):
    export(tmp_path / "model", "old")

    def interrupted():
        with staging_folder(tmp_path / "model") as staging:
            (staging / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read(tmp_path / "model") == "old" and names(tmp_path) == ["model"]


def test_a_disk_that_refuses_leaves_the_old_artifact(tmp_path, way, monkeypatch):
    export(tmp_path / "model", "old")
    rename = Path.rename

    def refuse(self, target):
        if ".staging-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match="Input/output error"):
        export(tmp_path / "model", "new")
    assert read(tmp_path / "model") == "old" and names(tmp_path) == ["model"]


def test_a_second_rename_that_fails_brings_the_old_artifact_back(tmp_path, monkeypatch):
    export(tmp_path / "model", "old")
    rename, calls = Path.rename, []

    def refuse_once_the_way_is_free(self, target):
        calls.append(self.name)
        if ".staging-" in self.name and not Path(target).exists():
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_once_the_way_is_free)
    monkeypatch.setattr(storage, "_exchange", storage._exchange_in_turn)
    with pytest.raises(ArtifactError, match="Input/output error"):
        export(tmp_path / "model", "new")
    assert len(calls) == 4, "rename, retire, rename, bring back"
    assert read(tmp_path / "model") == "old" and names(tmp_path) == ["model"]


def test_a_parent_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ArtifactError, match="cannot create a folder") as caught,
        staging_folder(tmp_path / "file" / "model"),
    ):
        pytest.fail("must not be entered")
    assert "output=" in caught.value.hint


def test_left_overs_of_killed_processes_are_removed(tmp_path):
    export(tmp_path / "model", "good")
    for kind in ("staging", "retired"):
        (tmp_path / f".model.{kind}-{stamp()}").mkdir()
    aged(tmp_path / f".model.staging-{stamp()}").rename(tmp_path / f".model.staging-{stamp(boot='0' * 8)}")
    export(tmp_path / "model", "better")
    assert read(tmp_path / "model") == "better" and names(tmp_path) == ["model"]


def test_an_artifact_lost_between_two_renames_is_brought_back(tmp_path):
    export(tmp_path / "model", "good")
    (tmp_path / "model").rename(tmp_path / f".model.retired-{stamp()}")
    with staging_folder(tmp_path / "model"):
        assert read(tmp_path / "model") == "good"
    assert names(tmp_path) == ["model"]


def test_what_may_be_live_or_somebody_elses_is_left_alone(tmp_path):
    kept = [
        f".model.staging-{stamp(machine='0' * 8, boot='1' * 8)}",  # of another machine, on a shared file system
        f".model.staging-{stamp(boot='1' * 8)}",  # a clone of this machine, of the same name and younger than our boot
        f".other.staging-{stamp()}",
        ".model.staging-1234-abc",
        ".model.staging-notes",
        ".model.retired-photos",
    ]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / f".model.staging-{stamp()}").symlink_to(tmp_path / "mine")
    with staging_folder(tmp_path / "model") as live:
        export(tmp_path / "model", "new")
        assert live.is_dir()
    assert names(tmp_path) == sorted([*kept, "model", "mine", f".model.staging-{stamp()}"])


@pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces are of Linux")
def test_a_live_export_of_another_pid_namespace_is_left_alone(tmp_path):
    wrapper = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody make PID namespaces")
    script = (
        "import pathlib, sys\n"
        "from deploykit.artifact.storage import staging_folder\n"
        "with staging_folder(pathlib.Path(sys.argv[1])) as staging:\n"
        "    print(staging.name, flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*wrapper, sys.executable, "-c", script, str(tmp_path / "model")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment) as other:
        staging = other.stdout.readline().decode().strip()
        export(tmp_path / "model", "new")
        assert names(tmp_path) == sorted([staging, "model"])
        other.kill()
    deadline = time.monotonic() + 30.0
    while names(tmp_path) != ["model"] and time.monotonic() < deadline:  # the namespace ends after its first process
        export(tmp_path / "model", "newer")
    assert names(tmp_path) == ["model"]


def test_parts_of_killed_writers_are_removed_and_live_ones_are_not(tmp_path):
    dead, mine = tmp_path / f".file.{stamp()}.part", tmp_path / ".file.notes.part"
    dead.touch()
    mine.touch()

    def meanwhile(part: Path) -> None:
        write_file(tmp_path / "file", b"inner")
        assert part.exists()

    write_file(tmp_path / "file", b"outer", check=meanwhile)
    assert names(tmp_path) == [mine.name, "file"] and (tmp_path / "file").read_bytes() == b"outer"


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = tmp_path / "out"
    {"link": lambda: path.symlink_to("/dev/null"), "folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(ArtifactError, match="left alone"):
        write_file(path, b"new")
    assert names(tmp_path) == ["out"] and not path.is_file()


def test_what_the_check_refuses_is_where_it_was(tmp_path, way):
    export(tmp_path / "model", "mine")
    looks = []

    def refuse_late(path: Path) -> None:
        looks.append(path.name)
        if len(looks) > 1:
            raise ArtifactError("somebody put it there just now")

    def replace() -> None:
        with staging_folder(tmp_path / "model") as staging:
            (staging / "new").touch()
            publish_folder(staging, tmp_path / "model", refuse_late)

    with pytest.raises(ArtifactError, match="just now"):
        replace()
    assert len(looks) == 2 and read(tmp_path / "model") == "mine" and names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["x" * 255, "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(ArtifactError), staging_folder(tmp_path / name):
        pytest.fail("must not be entered")
    with pytest.raises(ArtifactError):
        write_file(tmp_path / name, b"")


def test_names_with_characters_of_patterns(tmp_path):
    (tmp_path / f".x[1]*.staging-{stamp()}").mkdir()
    (tmp_path / f".x1y.staging-{stamp()}").mkdir()
    export(tmp_path / "x[1]*", "new")
    assert names(tmp_path) == sorted([f".x1y.staging-{stamp()}", "x[1]*"])


def test_a_killed_process_leaves_the_old_artifact(tmp_path):
    export(tmp_path / "model", "old")
    script = (
        "import os, pathlib, sys\n"
        "from deploykit.artifact.storage import staging_folder\n"
        "with staging_folder(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], env=environment, check=False)
    assert done.returncode == -9
    assert read(tmp_path / "model") == "old" and len(names(tmp_path)) == 2
    export(tmp_path / "model", "new")
    assert read(tmp_path / "model") == "new" and names(tmp_path) == ["model"]


def test_concurrent_writers_all_succeed_and_one_wins(tmp_path, way):
    destination, failures = tmp_path / "model", []

    def write(number: int) -> None:
        try:
            for turn in range(5):
                export(destination, f"{number}-{turn}")
        except Exception as error:  # of any kind: it would vanish with the thread
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert read(destination) in {f"{number}-4" for number in range(4)}
    assert names(tmp_path) == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names in one step")
def test_a_reader_finds_an_artifact_at_any_moment(tmp_path):
    destination, done, missing = tmp_path / "model", threading.Event(), []
    export(destination, "first")

    def look() -> None:
        while not done.is_set():
            if not destination.exists():
                missing.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(30):
        export(destination, str(turn))
    done.set()
    reader.join()
    assert not missing
