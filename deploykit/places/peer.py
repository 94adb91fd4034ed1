"""Our end of the session protocol: `Peer` asks a process, and `RemoteSession` is what is opened through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract import errors
from deploykit.contract.errors import ArtifactError, DeploykitError, DeviceError
from deploykit.contract.requirements import Requirements
from deploykit.contract.session import OpTime, Session
from deploykit.places import frames
from deploykit.places.frames import Frame, OtherVersionError

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.tensors import Feeds
    from deploykit.places.process import Process

_TYPES: Mapping[str, type[DeploykitError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, DeploykitError) and kind.__init__ is DeploykitError.__init__
}


class Peer:
    """The process at the other end.

    Args:
        process: started, and speaking the protocol.
        place: where it runs, for messages, such as "pi@board"; "" for this machine, whose errors keep their types.
        failure: the error of an ERROR's object, where that has its own form.
    """

    def __init__(
        self, process: Process, place: str = "", *, failure: Callable[[Mapping[str, Any]], DeploykitError] | None = None
    ) -> None:
        self.process, self._place, self._failure = process, place, failure or self._said

    def exchange(self, request: Frame) -> Frame:
        """Its answer, an error included.

        Raises:
            DeploykitError: it ended, was stopped, took too long, or gave no answer.
        """
        with self.process.exchange():
            self.process.send(*frames.encode(request))
            try:
                found = frames.decode(self.process.receive)
            except OtherVersionError as other:
                raise self._other(other) from other
            if found.kind not in (frames.ANSWER, frames.ERROR):
                raise ValueError(f"a frame of kind {found.kind}")
            return found

    def ask(self, request: Frame) -> Frame:
        """Its answer.

        Raises:
            DeploykitError: as `exchange`; or what it could not do: of this machine the error that it says, else a
                DeviceError.
        """
        found = self.exchange(request)
        if found.kind == frames.ERROR:
            raise self._failure(found.facts)
        return found

    def close(self) -> None:
        """Say that nothing will be asked any more, and wait for its end; it is ended where it does not end itself."""
        if self.process.alive:
            self.process.send(*frames.encode(Frame(frames.CLOSE)))
        self.process.close()

    def _said(self, facts: Mapping[str, Any]) -> DeploykitError:
        message, hint = str(facts.get("message", "it failed")), str(facts.get("hint") or "")
        if not self._place:
            return _TYPES.get(str(facts.get("type")), DeviceError)(message, hint=hint or None)
        there = f"on {self._place}: {hint}" if hint else f"the message is that of deploykit on {self._place}"
        return DeviceError(f"{self._place}: {message}", hint=there)

    def _other(self, other: OtherVersionError) -> DeploykitError:
        where = self._place or "the other process"
        message = f"{where} speaks version {other.version} of the session protocol, and we speak {frames.VERSION}"
        return DeviceError(message, hint="install the same version of deploykit on both machines")


@dataclass(frozen=True)
class BoardProgram:
    """A program of the artifact that speaks the protocol itself, for places that have no Python.

    Attributes:
        files: the files of the artifact's folder that it needs; the first is the program.
        arguments: after the program; `{threads}` and names of files stand for themselves.
        facts: the facts that it must answer to OPEN, which show that it is the program of this model.
        op_times: operators from the microseconds of its steps.
    """

    files: tuple[str, ...]
    arguments: tuple[str, ...]
    facts: Mapping[str, Any]
    op_times: Callable[[np.ndarray], tuple[OpTime, ...]]

    def words(self, folder: str, threads: int) -> list[str]:
        """Program and arguments, where its files lie in `folder`."""
        arguments = (word.replace("{threads}", str(threads)) for word in self.arguments)
        return [f"{folder}/{word}" if word in self.files else word for word in (self.files[0], *arguments)]


@dataclass(frozen=True)
class Wants:
    """What a target says of an artifact that is to be opened elsewhere.

    Attributes:
        needs: the needs of the machine.
        program: the program that is started there in place of Python; None where deploykit's server opens it.
        extra: the extra of deploykit that brings the runtime.
    """

    needs: Requirements = field(default_factory=Requirements)
    program: BoardProgram | None = None
    extra: str = ""


class RemoteSession(Session):
    """An artifact that is open in another process.

    Args:
        artifact: what is open there.
        peer: the peer that opens it when it is asked to.
        asked: what OPEN carries.
        program: what answers, where it is the artifact's own.

    Attributes:
        variant: whose kernels run, of a program that has several; "" of others.

    Raises:
        DeploykitError: it could not be opened; the message says what it, or the machine, lacks.
        ArtifactError: it is a program of another model.
    """

    def __init__(
        self, artifact: StoredArtifact, peer: Peer, asked: Mapping[str, Any], program: BoardProgram | None = None
    ) -> None:
        self._peer, self._program = peer, program
        self._peak_bytes: int | None = None
        try:
            found = peer.ask(Frame(frames.OPEN, dict(asked))).facts
            if program is not None and any(found.get(name) != value for name, value in program.facts.items()):
                message = f"{program.files[0]} of {artifact.path.name} is not the program of this model"
                raise ArtifactError(message, hint="export the model again")
            self.variant = str(found.get("variant", ""))
            threads = found.get("threads", asked.get("threads"))
            super().__init__(artifact.inputs, artifact.outputs, threads=int(threads or 1))
        except BaseException:
            peer.close()
            raise

    @property
    def peak_memory_bytes(self) -> int | None:
        """See `Session.peak_memory_bytes`; as the process said it when it was last timed."""
        return self._peak_bytes

    def times_ms(self, feeds: Feeds, *, runs: int) -> list[float]:
        """See `Session.times_ms`: on the clock of the other machine, without what lies between."""
        arrays = self._checked(feeds)
        with self._turns:
            found = self._profile(arrays, runs=runs)["run_ms"]
        if found.shape != (runs,):
            raise DeviceError(f"the other process timed {found.shape} runs, not {runs}", hint="try again")
        return [float(value) for value in found]

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        found = self._peer.ask(Frame(frames.RUN, {}, self._ordered(feeds))).tensors
        absent = [spec.name for spec in self.outputs if spec.name not in found]
        if absent:
            raise DeviceError(f"the other process gave no {', '.join(absent)}", hint="export the model again")
        return {spec.name: found[spec.name].copy() for spec in self.outputs}

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        request = Frame(frames.PROFILE, {}, self._ordered(feeds), op_runs=runs)
        found = self._peer.ask(request)
        spent = found.tensors.get("op_us", np.zeros(0))
        if self._program is not None:
            return self._program.op_times(spent)
        named = zip(found.facts.get("ops", ()), spent, strict=True)
        return tuple(OpTime(str(name), str(op), str(path), float(own)) for (name, op, path), own in named)

    def _profile(self, arrays: Feeds, *, runs: int) -> Mapping[str, np.ndarray]:
        found = self._peer.ask(Frame(frames.PROFILE, {}, self._ordered(arrays), runs=runs)).tensors
        if "peak_bytes" in found:
            self._peak_bytes = int(found["peak_bytes"][0])
        return found

    def _ordered(self, feeds: Feeds) -> dict[str, Any]:
        return {spec.name: feeds[spec.name] for spec in self.inputs}

    def _close(self) -> None:
        self._peer.close()
