"""Compiled models under emulation of the exact CPU: the same results as here, and no crash where the CPU is too old."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import ArtifactError, DeviceError, MissingDependencyError
from deploykit.places import Qemu
from deploykit_targets.tvm import TvmTarget
from deploykit_targets.tvm.build import CONSTANTS, METADATA, RUNNER

UNIT = 0.05001  # of the quantised result, and float32's own error
BOARDS = {"raspberry-pi-5": "cortex-a76", "raspberry-pi-4": "cortex-a72", "arm-cpu": "max"}


def opened(artifact: Any, threads: int, *, cpu: str = "") -> Any:
    target = TvmTarget()
    return (target.at(Qemu(cpu)) if cpu else target).open(artifact, threads=threads)


@pytest.mark.parametrize("device", list(BOARDS))
@pytest.mark.parametrize("threads", [1, 2])
def test_a_board(device: str, threads: int, compiled: Callable[[str], Any], artifact_of: Any) -> None:
    made = compiled(device)
    assert TvmTarget().place(artifact_of(made)).emulator.cpu == BOARDS[device]
    with opened(artifact_of(made), threads) as session:
        results = [session.run(made.feeds)["y"] for _ in range(3)]
    assert np.abs(results[0] - made.expected).max() <= UNIT
    assert all(np.array_equal(results[0], other) for other in results)


def test_a_server_with_matrix_products(compiled: Callable[[str], Any], artifact_of: Any) -> None:
    """QEMU 7 does not know Neoverse V1; its `max` has the instructions."""
    made = compiled("graviton3")
    with opened(artifact_of(made), 2) as session:
        assert np.abs(session.run(made.feeds)["y"] - made.expected).max() <= UNIT


def test_a_cpu_without_dot_products_refuses_the_model_and_does_not_crash(compiled: Any, artifact_of: Any) -> None:
    with pytest.raises(DeviceError, match=r"this CPU has no .*dotprod"):
        opened(artifact_of(compiled("raspberry-pi-5")), 1, cpu="cortex-a72")


def test_without_that_check_it_would_die_there(
    compile_into: Any, artifact_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model for Cortex-A76 really executes instructions that Cortex-A72 lacks."""
    monkeypatch.setattr("deploykit_targets.tvm.build.needed_features", lambda target: ())
    made = compile_into("raspberry-pi-5", tmp_path)
    with (
        opened(artifact_of(made), 1, cpu="cortex-a72") as session,
        pytest.raises(DeviceError, match=r"used an instruction that cortex-a72 does not have.*dotprod"),
    ):
        session.run(made.feeds)


def test_a_program_that_may_not_be_executed_is_copied(compiled: Any, artifact_of: Any, tmp_path: Path) -> None:
    made = compiled("raspberry-pi-4")
    artifact = _copy(artifact_of(made), tmp_path)
    (artifact.path / RUNNER).chmod(0o600)
    with opened(artifact, 1) as session:
        assert np.abs(session.run(made.feeds)["y"] - made.expected).max() <= UNIT


def test_no_times_are_given(compiled: Any, artifact_of: Any) -> None:
    made = compiled("raspberry-pi-4")
    with opened(artifact_of(made), 1) as session:
        assert session.op_times(made.feeds, runs=1) == ()


def test_a_killed_process(compiled: Any, artifact_of: Any) -> None:
    made = compiled("raspberry-pi-4")
    with opened(artifact_of(made), 1) as session:
        session._peer.process._process.kill()
        with pytest.raises(DeviceError, match="was killed by SIGKILL on an emulated cortex-a72"):
            session.run(made.feeds)


def test_a_truncated_program(compiled: Any, artifact_of: Any, tmp_path: Path) -> None:
    artifact = _copy(artifact_of(compiled("raspberry-pi-4")), tmp_path)
    data = (artifact.path / RUNNER).read_bytes()
    (artifact.path / RUNNER).write_bytes(data[:5000])
    with pytest.raises(ArtifactError, match="run of artifact has 5000 bytes"):
        opened(artifact, 1)


def test_a_program_that_is_none(compiled: Any, artifact_of: Any, tmp_path: Path) -> None:
    artifact = _copy(artifact_of(compiled("raspberry-pi-4")), tmp_path)
    size = artifact.manifest.metadata[METADATA]["runtime_files"][RUNNER]
    (artifact.path / RUNNER).write_bytes(b"\0" * size)
    (artifact.path / RUNNER).chmod(0o700)
    with pytest.raises(DeviceError, match="run of artifact ended with code"):
        opened(artifact, 1)


def test_constants_of_another_model(compiled: Any, artifact_of: Any, tmp_path: Path) -> None:
    artifact = _copy(artifact_of(compiled("raspberry-pi-4")), tmp_path)
    (artifact.path / CONSTANTS).write_bytes(b"x" * 7)
    artifact.manifest.metadata[METADATA]["runtime_files"][CONSTANTS] = 7
    with pytest.raises(DeviceError, match=r"constants\.bin has 7 bytes, the library wants"):
        opened(artifact, 1)


def test_sessions_at_the_same_time(compiled: Any, artifact_of: Any) -> None:
    made = compiled("raspberry-pi-4")
    artifact = artifact_of(made)
    with opened(artifact, 1) as one, opened(artifact, 2) as other:
        assert np.array_equal(one.run(made.feeds)["y"], other.run(made.feeds)["y"])


def test_without_qemu(compiled: Any, artifact_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = artifact_of(compiled("raspberry-pi-4"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="sudo apt-get install qemu-user-static"):
        opened(artifact, 1)


def _copy(artifact: Any, folder: Path) -> Any:
    shutil.copytree(artifact.path, folder / "artifact")
    return type(artifact)(folder / "artifact", artifact.manifest, vouched=artifact.vouched)
