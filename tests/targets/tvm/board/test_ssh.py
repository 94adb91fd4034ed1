"""A board over SSH, against a fake `ssh` (see conftest): what is copied, what is refused, and what faults become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import DeviceError
from deploykit.places import Ssh
from deploykit_targets.tvm import TvmTarget
from deploykit_targets.tvm.build import METADATA

UNIT = 0.05001  # of the quantised result, and float32's own error


@pytest.fixture
def pi(compiled: Callable[[str], Any]) -> Any:
    return compiled("raspberry-pi-5")


def opened(artifact: Any, address: str, threads: int | None = None) -> Any:
    return TvmTarget().at(Ssh(address)).open(artifact, threads=threads)


def test_results_and_times_come_from_the_board(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    with opened(artifact_of(pi), "pi@board") as session:
        assert session.threads == 2
        assert np.abs(session.run(pi.feeds)["y"] - pi.expected).max() <= UNIT
        times = session.times_ms(pi.feeds, runs=7)
        ops = {time.name: time.median_us for time in session.op_times(pi.feeds, runs=1)}
    assert len(times) == 7 and min(times) > 0 and session.peak_memory_bytes > 0
    assert set(ops) == {"quantize", "conv", "add"} and min(ops.values()) > 0


def test_a_second_session_copies_nothing(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    for expected in (2, 2):
        with opened(artifact_of(pi), "board", 1):
            pass
        assert sum("dd bs" in command for command in fake_board.commands) == expected


def test_a_file_that_changed_on_the_board_is_sent_again(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    for _ in range(2):
        with opened(artifact_of(pi), "board", 1) as session:
            assert np.abs(session.run(pi.feeds)["y"] - pi.expected).max() <= UNIT
        for path in fake_board.files:
            path.write_bytes(b"altered")


def test_only_whole_files_have_names(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    with opened(artifact_of(pi), "board", 1):
        pass
    assert sorted(path.name for path in fake_board.files) == ["constants.bin", "run"]


@pytest.mark.parametrize("fault", ["cut", "damaged"])
def test_a_cut_copy_leaves_nothing_that_looks_whole(fault: str, pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(fault=fault)
    said = "cannot be reached, or the line was cut" if fault == "cut" else "arrived damaged on board; nothing was kept"
    with pytest.raises(DeviceError, match=said):
        opened(artifact_of(pi), "board", 1)
    assert all(path.parent.name == "parts" for path in fake_board.files), "nothing that looks whole"
    fake_board.have(fault="none")
    with opened(artifact_of(pi), "board", 1) as session:
        assert np.abs(session.run(pi.feeds)["y"] - pi.expected).max() <= UNIT


def test_an_unreachable_board(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(fault="unreachable")
    with pytest.raises(DeviceError, match=r"(?s)board cannot be reached.*No route to host.*ssh -o BatchMode=yes board"):
        opened(artifact_of(pi), "board", 1)


@pytest.mark.parametrize(("fault", "said"), [("lost", "lost its connection"), ("killed", "was killed by SIGKILL")])
def test_a_program_that_ends(fault: str, said: str, pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(fault=fault)
    with pytest.raises(DeviceError, match=f"on board {said}"):
        opened(artifact_of(pi), "board", 1)


def test_a_board_that_falls_silent(pi: Any, artifact_of: Any, fake_board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_CHILD_TIMEOUT_S", "0.5")
    fake_board.have(fault="silent")
    with pytest.raises(DeviceError, match=r"on board did not answer within 0\.5 s"):
        opened(artifact_of(pi), "board", 1)


def test_a_board_without_dot_products(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(cpu="cortex-a72")
    with pytest.raises(DeviceError, match=r"this CPU has no .*dotprod"):
        opened(artifact_of(pi), "board", 1)


def test_a_machine_of_another_architecture(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    (fake_board.folder / "board/uname").write_text('#!/bin/sh\n[ "$1" = -m ] && echo riscv64 || echo Linux\n')
    with pytest.raises(DeviceError, match="it is code for arm64, and this machine is riscv64"):
        opened(artifact_of(pi), "board")


def test_a_program_that_is_older_than_the_protocol(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    artifact = artifact_of(pi)
    artifact.manifest.metadata[METADATA]["protocol"] = 0
    with pytest.raises(DeviceError, match=r"(?s)its program is older than the protocol.*export the model again"):
        opened(artifact, "board")
    assert fake_board.files == []
