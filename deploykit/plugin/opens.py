"""Where and how a toolchain's artifacts are opened: requirements, preflight, places, and the runtime behind them.

Nothing is opened that was altered since it was loaded, that this machine (or the board) lacks something for, or that
must first be built on its device. What may crash is opened in a child process first.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deploykit.artifact import made
from deploykit.contract.devices import Device
from deploykit.contract.errors import ArtifactError, DeviceError, MissingDependencyError, UsageError
from deploykit.contract.host import Host, this_host
from deploykit.contract.precision import Precision
from deploykit.contract.requirements import Missing, Preflight, Requirements, check
from deploykit.contract.session import Session
from deploykit.places.first import Risk, check_opens
from deploykit.places.peer import Wants
from deploykit.places.place import Here, Place
from deploykit.plugin.offers import Offers

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.places.peer import BoardProgram

# Runtimes start as many as they are told; some hang the machine long before they refuse.
_MAX_THREADS = 1024


class Opens(Offers):
    """The part of a `Target` that opens artifacts."""

    _place: Place = Here()

    def check_runnable(self, artifact: StoredArtifact) -> None:
        """Refuse early where a package for running `artifact` is missing; override where that depends on its build.

        Raises:
            MissingDependencyError: with the command that installs it.
        """
        self.check_installed(export=False)

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """What a payload for `device` in `precision` needs of a machine, as far as that is known without the file.

        Of an artifact that older versions wrote this is all that is known. Override it for more than its packages.
        """
        del device, precision
        return Requirements(packages={one.project: "" for one in self.capabilities().runtime_requires})

    def needs(self, artifact: StoredArtifact) -> Requirements:
        """What `artifact` needs: as its manifest says, or for one without, as `requirements` says."""
        manifest = artifact.manifest
        device = self.capabilities().devices.get(manifest.device)
        if manifest.requirements is None and device is not None:
            return self.requirements(device, manifest.precision)
        return manifest.requirements or Requirements()

    def preflight(self, artifact: StoredArtifact) -> Preflight:
        """Whether this machine has what `artifact` needs; nothing is opened.

        Override it where something else than this machine's own processor runs the payload.
        """
        place, needs = self.place(artifact), self.needs(artifact)
        found = place.preflight(artifact, self.wants(artifact)) or check(needs, self.host())
        build = artifact.manifest.build
        if build is not None:
            pending = Missing(f"it is not runnable yet: {build.reason}", build.command_for(artifact.path))
            return replace(found, missing=(*found.missing, pending))
        if not place.is_here:
            return found
        try:
            self.check_runnable(artifact)
        except MissingDependencyError as error:
            absent = Missing(error.message, error.command, error.package)
            return replace(found, missing=(*found.missing, absent))
        return found

    def host(self) -> Host:
        """The machine that this process runs on."""
        return this_host()

    def risk(self, artifact: StoredArtifact) -> Risk:
        """What opening `artifact` may do to the process that does it; a child then does it first."""
        return Risk.NONE

    def native_code(self, artifact: StoredArtifact) -> str:
        """What opening `artifact` executes of it, as the object of "runs ..."; "" where a runtime reads it as data.

        Where there is something, an artifact that was made elsewhere is opened only after a signature (`key=`) or with
        `allow_native=True`.
        """
        return f"the machine code in {artifact.manifest.entry}" if self.risk(artifact) is Risk.CODE else ""

    def build_code(self, artifact: StoredArtifact) -> str:
        """The same of `build`."""
        del artifact
        return ""

    def check_vouched(self, artifact: StoredArtifact, *, build: bool = False) -> None:
        """Run no code of an artifact that was not made here, unless it is signed or allowed; called by open and build.

        Raises:
            ArtifactError: says what it would run, and how to allow it.
        """
        code = self.build_code(artifact) if build else self.native_code(artifact)
        if not code or artifact.vouched or made.is_own(artifact):
            return
        doing = "building" if build else "opening"
        message = f"{doing} {artifact.path.name} runs {code}, and it was not made here by this account"
        hint = "give key= (--key) of who signed it; or, where you trust its maker, allow_native=True (--allow-native)"
        raise ArtifactError(message, hint=hint)

    def at(self, place: Place) -> Self:
        """This toolchain with another place as the one that its artifacts are opened in.

        Args:
            place: see `deploykit.places`; nothing is contacted before an artifact is opened, or asked about.
        """
        found = copy.copy(self)
        found._place = place
        return found

    def on_board(self, address: str) -> Self:
        """This toolchain with a board on the network as the machine that its artifacts are run on.

        Using it copies the artifact to the board and executes code there.

        Args:
            address: as for `ssh`, such as `user@host`; or `adb:SERIAL`.
        Raises:
            UsageError: this is no address.
        """
        from deploykit.places.address import board_at

        return self.at(board_at(address))

    def place(self, artifact: StoredArtifact) -> Place:
        """Where `artifact` is opened; override it where this machine's own processor cannot run it."""
        return self._place

    def board_program(self, artifact: StoredArtifact) -> BoardProgram | None:
        """The program of `artifact` that speaks the session protocol itself; None where deploykit's server opens it."""
        return None

    def wants(self, artifact: StoredArtifact) -> Wants:
        """What is to be said of `artifact` where another machine opens it."""
        program = None if self.place(artifact).is_here else self.board_program(artifact)
        return Wants(self.needs(artifact), program, self.capabilities().runtime_extra)

    def host_of(self, artifact: StoredArtifact) -> Host:
        """The machine that runs `artifact`."""
        return self.host() if self.place(artifact).is_here else self.preflight(artifact).host

    def open(self, artifact: StoredArtifact, *, threads: int | None = None) -> Session:
        """Open an artifact in its runtime.

        Args:
            threads: None for all cores that this process may use.
        Raises:
            DeviceError: the artifact must first be built on its device, or this machine lacks what it needs.
            MissingDependencyError: the runtime is not installed, or too old.
            ArtifactError: it holds native code that nobody vouches for; see `native_code`.
        """
        build = artifact.manifest.build
        if build is not None:
            raise DeviceError(
                f"{artifact.path.name} is not runnable yet: {build.reason}", hint=build.command_for(artifact.path)
            )
        if not artifact.entry.is_file():
            raise ArtifactError(f"{artifact.entry} is gone; was the artifact moved?", hint="deploykit.load(new path)")
        self.check_vouched(artifact)
        place = self.place(artifact)
        if place.is_here:
            self.check_runnable(artifact)
        self.refuse_missing(artifact)
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= _MAX_THREADS):
            raise UsageError(f"threads must be a whole number from 1 to {_MAX_THREADS}, not {threads!r}")
        artifact.check_unaltered()
        session = place.open(artifact, self.wants(artifact), threads) or self._open_here(artifact, threads, place)
        try:
            artifact.check_unaltered()  # what was opened is what was hashed
        except BaseException:
            session.close()
            raise
        return session

    def _open_here(self, artifact: StoredArtifact, threads: int | None, place: Place) -> Session:
        threads = threads or this_host().cores
        if isinstance(place, Here) and place.first:
            check_opens(artifact, self.risk(artifact), threads=threads)
        return self._open(artifact, threads)

    def refuse_missing(self, artifact: StoredArtifact) -> None:
        """Refuse an artifact that lacks something where it would be opened; see `preflight`.

        Raises:
            DeviceError: says what, and what to do.
            MissingDependencyError: it is an older package of this process.
        """
        place, found = self.place(artifact), self.preflight(artifact)
        if found.ok:
            return
        first = found.missing[0]
        if place.is_here and all(one.package for one in found.missing):
            extra, purpose = self.capabilities().runtime_extra, f"open {artifact.path.name}: {first.what}"
            raise MissingDependencyError(first.package, extra=extra, purpose=purpose, command=first.next, outdated=True)
        where = "here" if place.is_here else f"on {place}"
        message = f"{artifact.path.name} cannot run {where}: {'; '.join(one.what for one in found.missing)}"
        steps = "; ".join(dict.fromkeys(one.next for one in found.missing))
        raise DeviceError(message, hint=steps if place.is_here else f"{where}: {steps}")

    def open_file(self, path: Path, *, threads: int | None = None) -> Session:
        """Open a model file that need not come from deploykit; of a suffix in `capabilities().opens`.

        Raises:
            ArtifactError: the file is missing or damaged.
            MissingDependencyError: what runs it is not installed.
        """
        if not path.exists():
            raise ArtifactError(f"there is no {path}")
        self.check_installed(export=False)
        return self._open_file(path, threads or this_host().cores)

    @abstractmethod
    def _open(self, artifact: StoredArtifact, threads: int) -> Session: ...

    def _open_file(self, path: Path, threads: int) -> Session:
        """Override together with `Capabilities.opens`."""
        raise UsageError(f"{self.name} opens artifacts only, not {path.name}")
