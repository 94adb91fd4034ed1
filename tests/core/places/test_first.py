"""What may crash is opened in a child first: a crash there is an error here, and what went well is not asked again."""

import sys

import pytest

from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit.places import first, place
from deploykit.places.first import Risk
from deploykit.plugin.artifact import Artifact


@pytest.fixture
def artifact(toy, toy_children, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(first, "_known", set())
    made = toy.write_artifact(tmp_path / "artifact")
    have(monkeypatch, made, Risk.CODE)
    return made


def have(monkeypatch, artifact, risk):
    monkeypatch.setattr(type(artifact.plugin()), "risk", lambda self, artifact: risk)


@pytest.fixture
def started(monkeypatch):
    """The commands of children, in order."""
    found, real = [], place.module_command

    def command(*arguments):
        found.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(place, "module_command", command)
    return found


def run_instead(monkeypatch, code):
    started = []

    def command(*arguments):
        started.append(arguments)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(place, "module_command", command)
    return started


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (4, "SIGILL"), (7, "SIGBUS"), (6, "SIGABRT")])
def test_a_crash_is_a_device_error(artifact, monkeypatch, number, name):
    started = run_instead(monkeypatch, f"import os; os.kill(os.getpid(), {number})")
    for _ in range(2):  # asked again: the next time it may be another machine's fault
        with pytest.raises(
            DeviceError, match=rf"(?s)artifact cannot be opened here.*{name}.*-> copy the artifact again"
        ):
            artifact.open()
    assert len(started) == 2


def test_what_went_well_is_not_asked_again(artifact, started, monkeypatch):
    artifact.open().close()
    artifact.open().close()
    monkeypatch.setattr(first, "_known", set())  # another process
    artifact.open().close()
    assert len(started) == 1


def test_where_there_is_no_risk_there_is_no_child(artifact, started, monkeypatch):
    have(monkeypatch, artifact, Risk.NONE)
    artifact.open().close()
    assert not started


@pytest.mark.parametrize(("risk", "children"), [(Risk.READER, 0), (Risk.CODE, 1)])
def test_a_file_that_this_process_wrote_is_whole_and_code_may_crash_all_the_same(
    artifact, started, monkeypatch, risk, children
):
    have(monkeypatch, artifact, risk)
    first.trust(artifact, risk)
    artifact.open().close()
    assert len(started) == children


def test_a_child_that_was_asked_for_is_the_one_that_may_crash(artifact, started):
    with artifact.open(place=place.Child()):
        pass
    assert len(started) == 1


def test_an_error_that_is_no_crash_is_for_the_real_attempt(artifact):
    broken = Artifact(artifact.path, artifact.manifest, vouched="by the test")
    (artifact.path / "matrix.npy").write_bytes(b"no matrix")
    with pytest.raises(ValueError, match="pickle"):
        broken.open()
    (artifact.path / "matrix.npy").unlink()
    with pytest.raises(ArtifactError, match="is gone"):
        broken.open()


def test_a_child_that_hangs_is_an_error(artifact, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CHILD_TIMEOUT_S", "0.3")
    run_instead(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(DeviceError, match="did not answer"):
        artifact.open()
