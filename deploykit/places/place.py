"""`Place`: where a session runs. Every place but `Here` opens an artifact through the session protocol (`frames.py`).

    Here()               in this process
    Child()              in a process of its own: a crash, a hang, a full memory there become an error here
    Qemu("cortex-a72")   under emulation of another CPU: right results, and no times
    Ssh("pi@board")      on another machine

A place says what its machine has, and opens what it is given; which of them an artifact needs, its target knows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import msgspec

from deploykit.contract.errors import DeviceError
from deploykit.contract.precision import Evidence
from deploykit.contract.requirements import Preflight, Requirements, check
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.peer import Peer, RemoteSession, Wants
from deploykit.places.process import Process, module_command, time_limit

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.host import Host
    from deploykit.contract.session import Session

SERVER = "deploykit.places.serve"
_TIMEOUT_S = 1800.0  # of opening an artifact, or of one answer


class Place:
    """Where a session runs.

    Attributes:
        is_here: whether it is this machine with its own CPU, so that what is known of that holds there.
        is_emulated: whether times there mean nothing.
    """

    is_here: ClassVar[bool] = True
    is_emulated: ClassVar[bool] = False

    def preflight(self, artifact: StoredArtifact, wants: Wants) -> Preflight | None:
        """Whether the place has what an artifact needs, asked there; None for this machine, which its target knows.

        Raises:
            DeviceError: the place cannot be reached, or has no deploykit of this version.
        """
        return None

    def evidence(self, artifact: StoredArtifact, wants: Wants) -> Evidence | None:
        """What running an artifact there proves, as the deploykit there says; None where its target here knows."""
        return None

    def open(self, artifact: StoredArtifact, wants: Wants, threads: int | None) -> Session | None:
        """Open an artifact there; None for this process, where its target does.

        Args:
            threads: None for all cores that its process may use.
        Raises:
            DeploykitError: it cannot be opened there; says what to do.
        """
        return None


@dataclass(frozen=True)
class Here(Place):
    """This process.

    Attributes:
        first: whether what may crash is opened in a child first, unless that went well before.
    """

    first: bool = True


@dataclass(frozen=True)
class Child(Place):
    """A process of its own on this machine, which cannot take this one along and does not outlive it.

    Attributes:
        timeout_s: how long opening, or one answer, may take; `$DEPLOYKIT_CHILD_TIMEOUT_S` overrides it.
    """

    timeout_s: float = _TIMEOUT_S

    def open(self, artifact: StoredArtifact, wants: Wants, threads: int | None) -> Session:
        """See `Place.open`: by the same runtime, installed where this process has it."""
        return RemoteSession(artifact, self.start(artifact), opening(artifact, threads))

    def start(self, artifact: StoredArtifact) -> Peer:
        """The process, which has opened nothing yet."""
        process = Process(
            module_command(SERVER),
            what=f"the process of {artifact.path.name}",
            timeout_s=time_limit(self.timeout_s),
        )
        return Peer(process)


def opening(artifact: StoredArtifact, threads: int | None) -> dict[str, object]:
    """What OPEN carries where the other process sees the same files, which this one has checked."""
    return {
        "path": os.fspath(artifact.path),
        "manifest": artifact.manifest.to_json().decode(),
        "threads": threads,
    }


@dataclass(frozen=True)
class Verdict:
    """What the deploykit at the other end says of its machine and an artifact.

    Attributes:
        preflight: what the machine has and lacks.
        evidence: what running the artifact there proves.
    """

    preflight: Preflight
    evidence: Evidence


class Elsewhere(Place, ABC):
    """A place that is another machine, or another CPU: the deploykit there is asked, once for each artifact."""

    is_here: ClassVar[bool] = False

    def __init__(self) -> None:
        self._verdicts: dict[bytes, Verdict] = {}

    @abstractmethod
    def start(self, artifact: StoredArtifact, wants: Wants) -> Peer:
        """The server there, which has opened nothing yet.

        Raises:
            DeviceError: there is none, or one of another version.
        """

    def verdict(self, artifact: StoredArtifact, wants: Wants) -> Verdict:
        """What the server there says.

        Raises:
            DeploykitError: it does not know the artifact's toolchain, say.
        """
        key = artifact.manifest.to_json()
        if key not in self._verdicts:
            peer = self.start(artifact, wants)
            try:
                found = peer.ask(Frame(frames.PREFLIGHT, {"manifest": key.decode()})).facts
                self._verdicts[key] = msgspec.convert(found, Verdict)
            except msgspec.ValidationError as error:
                message = f"the deploykit there gave no preflight: {error}"
                raise DeviceError(message, hint="install the same version there") from error
            finally:
                peer.close()
        return self._verdicts[key]


def program_preflight(needs: Requirements, host: Host) -> Preflight:
    """The preflight of a program that brings all that it needs: only the machine counts, whose memory is not ours."""
    return check(replace(needs, memory_bytes=0, packages={}), host)
