"""Native code is opened in a child first: a crash there is an error here, and what went well is not asked again."""

import sys

import pytest

from deploykit.contract.errors import DeviceError
from deploykit.places import first


@pytest.fixture
def artifact(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(first, "_known", set())
    made = toy.write_artifact(tmp_path / "artifact")
    monkeypatch.setattr(type(made.plugin()), "runs_native_code", lambda self, artifact: True)
    return made


def run_instead(monkeypatch, code):
    started = []

    def command(*arguments):
        started.append(arguments)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(first, "module_command", command)
    return started


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (4, "SIGILL"), (7, "SIGBUS"), (6, "SIGABRT")])
def test_a_crash_is_a_device_error(artifact, monkeypatch, number, name):
    started = run_instead(monkeypatch, f"import os; os.kill(os.getpid(), {number})")
    for _ in range(2):  # asked again: the next time it may be another machine's fault
        with pytest.raises(DeviceError, match=f"artifact cannot be opened here.*{name}"):
            artifact.open()
    assert len(started) == 2


def test_what_went_well_is_not_asked_again(artifact, monkeypatch):
    started = run_instead(monkeypatch, "")
    artifact.open().close()
    artifact.open().close()
    monkeypatch.setattr(first, "_known", set())  # another process
    artifact.open().close()
    assert len(started) == 1


def test_an_error_that_is_no_crash_is_for_the_real_attempt(artifact, monkeypatch):
    run_instead(monkeypatch, "raise SystemExit(3)")
    artifact.open().close()


def test_a_child_that_hangs_is_an_error(artifact, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CHILD_TIMEOUT_S", "0.3")
    run_instead(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(DeviceError, match="did not answer"):
        artifact.open()


def test_a_child_opens_and_runs(artifact, tmp_path):
    manifest = tmp_path / "m.json"
    manifest.write_bytes(artifact.manifest.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(first.PROBING, "1")
        first.main(artifact.path, manifest, 1)
