"""A board over SSH, against a fake `ssh` (see conftest): what is copied, what is refused, and what faults become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import DeviceError, MissingDependencyError, UsageError
from deploykit.places.ssh import Board
from deploykit_targets.tvm.runner import BoardSession

UNIT = 0.05001  # of the quantised result, and float32's own error


@pytest.fixture
def pi(compiled: Callable[[str], Any]) -> Any:
    return compiled("raspberry-pi-5")


def test_results_and_times_come_from_the_board(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    with BoardSession(artifact_of(pi), 2, Board("pi@board")) as session:
        assert np.abs(session.run(pi.feeds)["y"] - pi.expected).max() <= UNIT
        timing = session.timed(pi.feeds, runs=7)
        names = {time.name for time in session.op_times(pi.feeds, runs=1)}
    assert len(timing.run_ms) == 7 and (timing.run_ms > 0).all() and timing.peak_bytes > 0
    assert len(timing.step_us) == len(pi.program.steps)
    assert names == {"quantize", "conv", "add"}


def test_a_second_session_copies_nothing(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    for expected in (2, 2):
        with BoardSession(artifact_of(pi), 1, Board("board")):
            pass
        assert sum("cat >" in command for command in fake_board.commands) == expected


def test_a_file_that_changed_on_the_board_is_sent_again(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    for _ in range(2):
        with BoardSession(artifact_of(pi), 1, Board("board")) as session:
            assert np.abs(session.run(pi.feeds)["y"] - pi.expected).max() <= UNIT
        for path in fake_board.files:
            path.write_bytes(b"altered")


def test_only_whole_files_have_names(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    with BoardSession(artifact_of(pi), 1, Board("board")):
        pass
    assert sorted(path.name for path in fake_board.files) == ["constants.bin", "run"]


@pytest.mark.parametrize("fault", ["cut", "damaged"])
def test_a_cut_copy_leaves_nothing(fault: str, pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(fault=fault)
    said = "cannot be reached, or the line was cut" if fault == "cut" else "arrived damaged on board; nothing was kept"
    with pytest.raises(DeviceError, match=said):
        BoardSession(artifact_of(pi), 1, Board("board"))
    assert fake_board.files == []
    fake_board.have(fault="none")
    with BoardSession(artifact_of(pi), 1, Board("board")) as session:
        assert np.abs(session.run(pi.feeds)["y"] - pi.expected).max() <= UNIT


def test_an_unreachable_board(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(fault="unreachable")
    with pytest.raises(DeviceError, match=r"(?s)board cannot be reached.*No route to host.*ssh -o BatchMode=yes board"):
        BoardSession(artifact_of(pi), 1, Board("board"))


@pytest.mark.parametrize(("fault", "said"), [("lost", "lost its connection"), ("killed", "was killed by SIGKILL")])
def test_a_program_that_ends(fault: str, said: str, pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(fault=fault)
    with pytest.raises(DeviceError, match=f"on board {said}"):
        BoardSession(artifact_of(pi), 1, Board("board"))


def test_a_board_that_falls_silent(pi: Any, artifact_of: Any, fake_board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit_targets.tvm.runner._BOARD_TIMEOUT_S", 0.5)
    fake_board.have(fault="silent")
    with pytest.raises(DeviceError, match=r"on board did not answer within 0\.5 s"):
        BoardSession(artifact_of(pi), 1, Board("board"))


def test_a_board_without_dot_products(pi: Any, artifact_of: Any, fake_board: Any) -> None:
    fake_board.have(cpu="cortex-a72")
    with pytest.raises(DeviceError, match=r"this CPU has no .*dotprod"):
        BoardSession(artifact_of(pi), 1, Board("board"))


def test_a_machine_of_another_architecture(compiled: Any, artifact_of: Any, fake_board: Any) -> None:
    with pytest.raises(DeviceError, match=r"board is a aarch64; .* is code for x86_64"):
        BoardSession(artifact_of(compiled("x86-cpu")), 1, Board("board"))


def test_without_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="sudo apt-get install openssh-client"):
        Board("board").cores()


@pytest.mark.parametrize("address", ["", "-oProxyCommand=touch x", "two words", "a;b", "$(x)"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        Board(address)


@pytest.mark.parametrize("address", ["pi", "pi@10.0.0.2", "me@pi.local", "ssh://pi@host:2222", "pi@[fe80::1%eth0]"])
def test_addresses(address: str) -> None:
    assert str(Board(address)) == address


def test_nothing_is_contacted_before_it_is_needed(fake_board: Any, tmp_path: Path) -> None:
    Board("board")
    assert fake_board.commands == []
