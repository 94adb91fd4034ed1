"""Sessions over the program `run` of an artifact: under emulation, or on a board over SSH.

Both talk to it in the few words that `runtime/run.c` describes. Under emulation results count and times do not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds
from deploykit.places.emulator import bare_environment, crash_of, emulator_for
from deploykit.places.process import Process
from deploykit_targets.tvm.build import CONSTANTS, PROGRAM, RUNNER, read_program, recorded
from deploykit_targets.tvm.runtime.table import port_bytes
from deploykit_targets.tvm.session import check_sizes, op_times_of

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.places.ssh import Board

_EMULATED_TIMEOUT_S = 1800.0  # a ResNet-50 is some hundred times slower than on the board
_BOARD_TIMEOUT_S = 300.0
_MESSAGE_BYTES = 768


@dataclass(frozen=True)
class Timing:
    """What the program measured on its own clock.

    Attributes:
        run_ms: of every run, inputs copied in, without any transfer.
        step_us: mean of every step of the program, over other runs.
        peak_bytes: largest resident memory of the whole process.
    """

    run_ms: np.ndarray
    step_us: np.ndarray
    peak_bytes: int


class RunnerSession(Session):
    """Talks to `run`.

    Args:
        artifact: of the `tvm` toolchain.
        child: the started program.
        threads: that it was given.

    Raises:
        DeviceError: it could not open the model, or died; the message says what it or the CPU lacks.
        ArtifactError: it is a program of another model.
    """

    def __init__(self, artifact: StoredArtifact, child: Process, threads: int) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        self._program = read_program(artifact.path / PROGRAM)
        self._module_paths = artifact.achieved.module_paths
        self._child = child
        try:
            self._greet(artifact.path.name)
        except BaseException:
            self.close()
            raise

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        wanted = sum(map(port_bytes, self._program.outputs))
        data, at, found = self._ask(b"run ", 1, feeds, wanted), 0, {}
        for port in self._program.outputs:
            size = port_bytes(port)
            found[port.name] = np.frombuffer(data[at : at + size], port.dtype).reshape(port.shape).copy()
            at += size
        return found

    def _greet(self, name: str) -> None:
        with self._child.exchange():
            word, _, rest = self._child.receive_line().partition(" ")
        if word == "error":
            raise DeviceError(f"{name}: {rest}", hint="export for a device whose instruction sets this CPU has")
        sizes = [str(sum(map(port_bytes, ports))) for ports in (self._program.inputs, self._program.outputs)]
        if word != "ready" or rest.split() != [*sizes, str(len(self._program.steps))]:
            raise ArtifactError(f"{RUNNER} of {name} is not the program of this model", hint="export the model again")

    def _ask(self, word: bytes, count: int, feeds: Feeds, wanted: int) -> bytes:
        arrays = [feeds[port.name] for port in self._program.inputs]
        with self._child.exchange():
            self._child.send(word, struct.pack("<I", count), *(array.tobytes() for array in arrays))
            status, size = struct.unpack("<4sI", self._child.receive(8))
            if status not in (b"okay", b"fail") or size > (wanted if status == b"okay" else _MESSAGE_BYTES):
                raise ValueError(f"{status!r} and {size} bytes, of {wanted} that were asked for")
            data = self._child.receive(size)
            if status == b"okay" and size != wanted:
                raise ValueError(f"{size} bytes, not {wanted}")
        if status != b"okay":
            raise DeviceError(f"the compiled model failed: {data.decode(errors='replace')}")
        return data

    def _close(self) -> None:
        self._child.close()


class EmulatedSession(RunnerSession):
    """The program for a board on this machine's emulator, with the board's exact CPU where QEMU has it.

    It gives no times: they would say nothing about the board.
    """

    def __init__(self, artifact: StoredArtifact, threads: int, *, cpus: Sequence[str] = ()) -> None:
        """Start it.

        Args:
            cpus: QEMU's names, best first; none for those of the artifact's device.
        """
        check_sizes(artifact)
        self._scratch = contextlib.ExitStack()
        emulator = emulator_for(cpus or recorded(artifact).emulators)
        self.cpu = emulator.cpu
        program = _executable(artifact.path / RUNNER, self._scratch)
        child = Process(
            emulator.command(program, artifact.path / CONSTANTS, str(threads)),
            what=f"{RUNNER} of {artifact.path.name}",
            explain=lambda code, _: crash_of(code, emulator.cpu),
            environment=bare_environment(),
            timeout_s=_EMULATED_TIMEOUT_S,
        )
        super().__init__(artifact, child, threads)

    def _close(self) -> None:
        super()._close()
        self._scratch.close()


class BoardSession(RunnerSession):
    """The program on a real board; it and the constants are copied there first, unless they are there already."""

    def __init__(self, artifact: StoredArtifact, threads: int, board: Board) -> None:
        check_sizes(artifact)
        wanted = recorded(artifact).arch
        if (found := board.host().arch) != wanted:
            raise DeviceError(f"{board} is a {found}; {artifact.path.name} is code for {wanted}")
        folder = board.upload([artifact.path / RUNNER, artifact.path / CONSTANTS], executable=RUNNER)
        child = board.start(
            [f"{folder}/{RUNNER}", f"{folder}/{CONSTANTS}", str(threads)],
            what=f"{RUNNER} of {artifact.path.name}",
            timeout_s=_BOARD_TIMEOUT_S,
        )
        super().__init__(artifact, child, threads)

    def timed(self, feeds: Feeds, *, runs: int) -> Timing:
        """Let the program measure itself.

        Args:
            runs: measured, after its own warm-up.
        """
        with self._turns:
            return self._timed(feeds, runs)

    def _timed(self, feeds: Feeds, runs: int) -> Timing:
        data = self._ask(b"time", runs, feeds, 8 * (runs + len(self._program.steps) + 1))
        values = np.frombuffer(data, "<f8")
        return Timing(values[:runs], values[runs:-1], int(values[-1]))

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        return self.op_times_from(self._timed(feeds, 1))

    def op_times_from(self, timing: Timing) -> tuple[OpTime, ...]:
        """Time per layer of a measurement, slowest first."""
        return op_times_of(self._program.steps, timing.step_us, self._module_paths)


def _executable(program: Path, scratch: contextlib.ExitStack) -> Path:
    """The program, or a copy that may be executed: archives and copies lose that permission."""
    if os.access(program, os.X_OK):
        return program
    copy = Path(scratch.enter_context(tempfile.TemporaryDirectory())) / program.name
    shutil.copyfile(program, copy)
    copy.chmod(0o700)
    return copy
