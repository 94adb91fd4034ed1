"""The executor in this process: results, threads, errors."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import ArtifactError, DeviceError, UsageError
from deploykit_targets.tvm.build import CONSTANTS, LIBRARY, METADATA
from deploykit_targets.tvm.session import NativeSession

UNIT = 0.05001  # of the quantised result, and float32's own error


@pytest.fixture
def model(compiled: Callable[[str], Any]) -> Any:
    return compiled("x86-cpu")


@pytest.fixture
def copy_of(tmp_path: Path, artifact_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An artifact whose files may be damaged."""

    def copied(made: Any) -> Any:
        folder = tmp_path / "artifact"
        shutil.copytree(made.folder, folder)
        found = artifact_of(made)
        return type(found)(folder, found.manifest)

    return copied


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_results_are_the_same_with_any_number_of_threads(model: Any, artifact_of: Any, threads: int) -> None:
    with NativeSession(artifact_of(model), threads) as session:
        results = [session.run(model.feeds)["y"] for _ in range(20)]
    assert np.abs(results[0] - model.expected).max() <= UNIT
    assert all(np.array_equal(results[0], other) for other in results)


def test_outputs_are_the_callers(model: Any, artifact_of: Any) -> None:
    with NativeSession(artifact_of(model), 1) as session:
        first = session.run(model.feeds)["y"]
        kept = first.copy()
        session.run({"x": model.feeds["x"] * 0})
    assert np.array_equal(first, kept)


def test_inputs_need_not_be_contiguous(model: Any, artifact_of: Any) -> None:
    x = model.feeds["x"]
    reversed_twice = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    with NativeSession(artifact_of(model), 1) as session:
        assert np.array_equal(session.run({"x": reversed_twice})["y"], session.run({"x": x})["y"])


def test_sessions_at_the_same_time(model: Any, artifact_of: Any) -> None:
    """Each in a thread of its own, with a pool of its own."""
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        with NativeSession(artifact_of(model), 2) as session:
            for _ in range(50):
                results[number] = session.run({"x": model.feeds["x"] + np.float32(number)})["y"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with NativeSession(artifact_of(model), 1) as session:
        for number, result in results.items():
            assert np.array_equal(result, session.run({"x": model.feeds["x"] + np.float32(number)})["y"])


def test_one_session_from_several_threads(model: Any, artifact_of: Any) -> None:
    wrong: list[int] = []
    with NativeSession(artifact_of(model), 2) as session:
        expected = [session.run({"x": model.feeds["x"] * np.float32(n)})["y"] for n in range(4)]

        def work(number: int) -> None:
            for _ in range(50):
                got = session.run({"x": model.feeds["x"] * np.float32(number)})["y"]
                if not np.array_equal(got, expected[number]):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_opening_and_closing_leaves_no_threads(model: Any, artifact_of: Any) -> None:
    def native_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = native_threads()
    for _ in range(20):
        with NativeSession(artifact_of(model), 4) as session:
            session.run(model.feeds)
    assert native_threads() <= before


def test_time_per_layer(model: Any, artifact_of: Any) -> None:
    with NativeSession(artifact_of(model), 1) as session:
        times = session.op_times(model.feeds, runs=3)
    assert {time.name for time in times} == {"quantize", "conv", "add"}
    assert [time.median_us for time in times] == sorted((time.median_us for time in times), reverse=True)
    assert all(time.median_us > 0 for time in times)


def test_a_closed_session(model: Any, artifact_of: Any) -> None:
    session = NativeSession(artifact_of(model), 1)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(model.feeds)


def test_after_a_fork_the_library_says_so_itself_instead_of_waiting_for_ever(model: Any, artifact_of: Any) -> None:
    with NativeSession(artifact_of(model), 2) as session:
        session.run(model.feeds)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                session._run(model.feeds)  # `run` refuses before the library is asked
                os.write(writing, b"ran")
            except DeviceError as error:
                os.write(writing, error.message.encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        said = os.read(reading, 1000).decode()
        os.close(reading)
    assert "opened before this process was forked" in said


def test_another_architecture(compiled: Any, artifact_of: Any) -> None:
    with pytest.raises(DeviceError, match="is code for aarch64; this machine is x86_64"):
        NativeSession(artifact_of(compiled("raspberry-pi-4")), 1)


def test_a_library_that_is_none(model: Any, copy_of: Any) -> None:
    artifact = copy_of(model)
    (artifact.path / LIBRARY).write_bytes(b"not ELF" * 100)
    artifact.manifest.metadata[METADATA]["runtime_files"][LIBRARY] = 700
    with pytest.raises(ArtifactError, match=r"model\.so cannot be loaded"):
        NativeSession(artifact, 1)


def test_a_truncated_library(model: Any, copy_of: Any) -> None:
    artifact = copy_of(model)
    data = (artifact.path / LIBRARY).read_bytes()
    (artifact.path / LIBRARY).write_bytes(data[: len(data) // 8])
    with pytest.raises(ArtifactError, match=r"model\.so of artifact has \d+ bytes, not \d+"):
        NativeSession(artifact, 1)


def test_a_system_with_an_older_c_library(model: Any, artifact_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError("libc.so.6: version `GLIBC_2.34' not found")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    with pytest.raises(DeviceError, match=r"too old for model\.so"):
        NativeSession(artifact_of(model), 1)


def test_constants_of_another_size(model: Any, copy_of: Any) -> None:
    artifact = copy_of(model)
    (artifact.path / CONSTANTS).write_bytes(b"short")
    artifact.manifest.metadata[METADATA]["runtime_files"][CONSTANTS] = 5
    with pytest.raises(DeviceError, match=r"has 5 bytes, the library wants \d{4}"):
        NativeSession(artifact, 1)


def test_constants_are_gone(model: Any, copy_of: Any) -> None:
    artifact = copy_of(model)
    (artifact.path / CONSTANTS).unlink()
    with pytest.raises(ArtifactError, match=r"constants\.bin of artifact is missing"):
        NativeSession(artifact, 1)


def test_metadata_says_what_is_needed_and_how_large_it_is(model: Any) -> None:
    metadata = model.library.metadata
    assert metadata["arch"] == "x86_64" and set(metadata["needs"]) >= {"avx2", "fma"}
    files = metadata["runtime_files"]
    assert files == {name: (model.folder / name).stat().st_size for name in (LIBRARY, CONSTANTS)}
    assert METADATA == "library"
