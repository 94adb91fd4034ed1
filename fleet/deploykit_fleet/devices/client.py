"""`Device`: a board by its name, which verifies, profiles, builds and runs artifacts.

Whoever uses it has its lease meanwhile. What takes long is a job that the board does by itself: a line that is cut,
or a server of ssh that is killed, costs nothing but the wait for it. Using a board executes code there.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.artifact.store import check_files
from deploykit.contract.errors import ArtifactError, DeviceError, UsageError
from deploykit.contract.session import FunctionSession
from deploykit.judge.profiling import DEFAULT_EFFORT, Effort, Profile
from deploykit.places import frames
from deploykit.places.address import board_at
from deploykit.places.frames import Frame
from deploykit.places.transfer import FOLDER
from deploykit.plugin.artifact import Artifact, load
from deploykit_fleet.devices.jobs import PATIENCE_S, Done, Jobs
from deploykit_fleet.devices.lease import Clock, Lease, release
from deploykit_fleet.devices.probe import ONBOARD
from deploykit_fleet.devices.registry import Entry, Registry
from deploykit_fleet.devices.sensors import Sources, conditions, looking

if TYPE_CHECKING:
    import numpy as np

    from deploykit.contract.precision import Evidence
    from deploykit.contract.tensors import Feeds
    from deploykit.judge.parity import Metrics

WAIT_S = 120.0
"""How long to wait for another client, whose lease ends in less where it is dead."""
SUSTAINED_S = 600.0


def device(name: str, *, devices: str | Path | None = None) -> Device:
    """The board of that name; nothing is contacted yet.

    Args:
        name: as `deploykit device add` wrote it down.
        devices: the file; None for `$DEPLOYKIT_DEVICES`, else the one in the user's configuration folder.
    Raises:
        UsageError: there is none of that name; the message lists those there are.
    """
    return Device(name, Registry(devices).get(name))


class Device:
    """A board.

    Args:
        name: for messages.
        entry: where it is.
        clock, sources: where it tells its boot, and of its temperature.
        patience_s: how long it may be out of reach while it works.
    """

    def __init__(
        self,
        name: str,
        entry: Entry,
        *,
        clock: Clock | None = None,
        sources: Sources | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.name, self.entry = name, entry
        self.board = board_at(entry.address, python=entry.python or None)
        self._clock, self._sources, self._patience_s = clock or Clock(), sources or Sources(), patience_s
        self._jobs: Jobs | None = None

    @contextlib.contextmanager
    def leased(self, *, wait_s: float = WAIT_S) -> Iterator[Device]:
        """Have the board for several calls; each takes its lease itself where it is not held.

        Args:
            wait_s: how long to wait for another client.
        Raises:
            DeviceError: it is in use all the time; the message says by whom. Or it cannot be reached.
        """
        if self._jobs is not None:
            yield self
            return
        with Lease(self.board.line, self.name, self._clock, wait_s=wait_s) as lease:
            self._jobs = Jobs(self.board, lease, clock=self._clock, sources=self._sources, patience_s=self._patience_s)
            try:
                yield self
            finally:
                self._jobs = None

    def verify(self, artifact: Artifact | str | Path, *, wait_s: float = WAIT_S) -> Metrics:
        """Run the golden inputs on the board, and compare what comes with the golden outputs.

        Returns:
            The worst figures of the artifact there against the artifact where it was made.
        Raises:
            ArtifactError: a file of it is damaged, here; or it holds code from elsewhere that nobody answers for.
            ParityError: the board computes something else.
            DeviceError: it cannot be reached, is in use, lacks what the artifact needs, or crashed.
        """
        own = self._runnable(artifact)
        check_files(own.path, own.manifest)
        answers = iter(self._run(own, own.golden().inputs, wait_s))
        session = FunctionSession(lambda _: next(answers), own.inputs, own.outputs)
        return own.check_golden(session, where=f"on {self.name}")

    def run(
        self,
        artifact: Artifact | str | Path,
        feeds: Feeds | Sequence[Feeds],
        *,
        wait_s: float = WAIT_S,
    ) -> Any:
        """Run an artifact on arrays.

        Args:
            feeds: one array per input, by name; or several such mappings.
        Returns:
            One array per output, by name; a list of such where `feeds` is several.
        Raises:
            UsageError: a name, dtype or shape is off.
            DeviceError: as `verify`.
        """
        own = self._runnable(artifact)
        given: list[Feeds] = []

        def keep(arrays: Feeds) -> dict[str, np.ndarray]:
            given.append(dict(arrays))
            return {}

        checker = FunctionSession(keep, own.inputs, own.outputs)
        for each in [feeds] if isinstance(feeds, Mapping) else feeds:
            checker.run(each)
        found = self._run(own, given, wait_s)
        return found[0] if isinstance(feeds, Mapping) else found

    def profile(
        self,
        artifact: Artifact | str | Path,
        *,
        effort: Effort = DEFAULT_EFFORT,
        sustained: bool | float = False,
        wait_s: float = WAIT_S,
    ) -> Profile:
        """Measure an artifact on the board, with what the board tells of temperature, clock and throttling.

        Args:
            effort: how long to measure, and with how many threads.
            sustained: run on for ten minutes, or so many seconds, and compare the last minute with the first.
        Raises:
            DeviceError: as `verify`.
        """
        own = self._runnable(artifact)
        seconds = SUSTAINED_S if sustained is True else float(sustained)
        if not 0.0 <= seconds < float("inf"):
            raise UsageError(f"sustained={sustained!r} is not a number of seconds")
        with self.leased(wait_s=wait_s):
            there = self._checked(own)
            program = there.plugin().wants(there).program
            found = self._live(there, effort, seconds) if program else self._told(own, effort, seconds)
        note = f"measured on {self.name}, by its own clock, while nobody else had its lease"
        return replace(found, notes=(note, *found.notes))

    def build(
        self,
        artifact: Artifact | str | Path,
        *,
        output: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        profile: bool = True,
        strict: bool = True,
        wait_s: float = WAIT_S,
    ) -> Artifact:
        """Finish an artifact on the board (an engine, say), prove it there, and fetch it; see `deploykit.build`.

        Returns:
            The built artifact, here.
        Raises:
            UsageError: there is nothing to build.
            DeviceError: as `verify`, or the vendor's builder refused; the message is the board's.
            ParityError, PlacementError: as `deploykit.build`.
        """
        from deploykit.pipeline.build import adopt

        own = _loaded(artifact)
        if own.manifest.build is None:
            raise UsageError(f"{own.path.name} needs no build; its status is {own.status!r}", hint="run it as it is")
        own.plugin().check_vouched(own, build=True)
        with self.leased(wait_s=wait_s):
            folder, made = self.board.upload(own), f"{FOLDER}/built/{own.fingerprint[:32]}"
            asked = {"do": "build", "path": folder, "output": made, "options": dict(options or {}) or None}
            done = self._job([Frame(frames.CALL, {**asked, "profile": profile})], f"the build of {own.path.name}")
            self.board.line.run(f"rm -rf {shlex.quote(made)}", check=False)
        files = {name: array.tobytes() for name, array in self._answered(done)[0].tensors.items()}
        return adopt(own, files, output=output, strict=strict)

    def evidence(self, artifact: Artifact | str | Path) -> Evidence:
        """What running an artifact there proves, as the board says."""
        there = _loaded(artifact).at(self.board)
        return there.plugin().evidence(there)

    def release(self) -> str:
        """End whatever lease there is, and what its holder left running.

        Returns:
            Whose it was; "" where there was none.
        Raises:
            DeviceError: the board cannot be reached.
        """
        return release(self.board.line, self._clock)

    def close(self) -> None:
        """End the connection; the next call opens it again."""
        self.board.line.close()

    # -- what a board is asked -----------------------------------------------------------------------------------

    def _run(self, own: Artifact, feeds: Sequence[Feeds], wait_s: float) -> list[dict[str, np.ndarray]]:
        with self.leased(wait_s=wait_s):
            there = self._checked(own)
            program = there.plugin().wants(there).program
            folder = self.board.upload(own, program.files if program else ())
            threads = self.board.host().cores if program else None
            opening = {"threads": threads} if program else {"path": folder, "threads": None}
            requests = [Frame(frames.OPEN, opening), *(Frame(frames.RUN, {}, _in_order(own, one)) for one in feeds)]
            command = shlex.join(program.words(folder, threads or 1)) if program else None
            opened, *answers = self._answered(self._job(requests, own.path.name, command), len(requests))
        if program and any(opened.facts.get(name) != value for name, value in program.facts.items()):
            message = f"{program.files[0]} of {own.path.name} is not the program of this model"
            raise ArtifactError(message, hint="export the model again")
        return [_outputs(own, answer) for answer in answers]

    def _told(self, own: Artifact, effort: Effort, seconds: float) -> Profile:
        """The profile that the deploykit there makes, by itself."""
        asked = {"do": "profile", "path": self.board.upload(own), "effort": asdict(effort), "sustained_s": seconds}
        done = self._job([Frame(frames.CALL, asked)], f"the profile of {own.path.name}", samples=True)
        try:
            found = msgspec.convert(self._answered(done)[0].facts["profile"], Profile)
        except (KeyError, msgspec.ValidationError) as error:
            message = f"the deploykit on {self.name} gave no profile: {error}"
            raise DeviceError(message, hint="install the same version there") from error
        return replace(found, conditions=conditions(done.sensors))

    def _live(self, there: Artifact, effort: Effort, seconds: float) -> Profile:
        """The profile of a program that speaks the protocol itself, asked over the line, which must hold."""
        from deploykit.judge.sustained import sustain

        look = f"{looking(self._sources)}look"
        before = self.board.line.run(look).stdout
        found = there.plugin().profile(there, effort=effort)
        if seconds:
            with there.open(threads=effort.threads) as session:
                found = replace(found, sustained=sustain(session, there.golden().inputs[0], seconds))
        read = (before + self.board.line.run(look).stdout).decode(errors="replace")
        return replace(found, conditions=conditions(read))

    def _runnable(self, artifact: Artifact | str | Path) -> Artifact:
        """The artifact, which may be run; nothing is contacted.

        Raises:
            DeviceError: it must be built first.
            ArtifactError: it holds code from elsewhere that nobody answers for.
        """
        own = _loaded(artifact)
        if own.manifest.build is not None:
            message = f"{own.path.name} is not runnable yet: {own.manifest.build.reason}"
            hint = f'deploykit.device("{self.name}").build(...), or deploykit device run {self.name} ARTIFACT --build'
            raise DeviceError(message, hint=hint)
        own.plugin().check_vouched(own)
        return own

    def _checked(self, own: Artifact) -> Artifact:
        """The artifact at this board, which has what it needs.

        Raises:
            DeviceError: it has not.
        """
        there = own.at(self.board)
        there.plugin().refuse_missing(there)
        return there

    def _job(self, requests: Sequence[Frame], what: str, command: str | None = None, *, samples: bool = False) -> Done:
        assert self._jobs is not None
        return self._jobs.run(requests, command or self.board.serving(ONBOARD), what=what, samples=samples)

    def _answered(self, done: Done, count: int = 1) -> tuple[Frame, ...]:
        """The answers, none of which is an error.

        Raises:
            DeviceError: one is; it keeps its words.
        """
        for answer in done.answers:
            if answer.kind == frames.ERROR:
                said, hint = (str(answer.facts.get(key) or "") for key in ("message", "hint"))
                raise DeviceError(f"{self.name}: {said}", hint=f"on {self.name}: {hint}" if hint else None)
        if len(done.answers) != count:
            message = f"{self.name} gave {len(done.answers)} answers to {count} requests"
            raise DeviceError(message, hint="install the same version of deploykit on both machines")
        return done.answers

    def __repr__(self) -> str:
        return f"<Device {self.name} at {self.board}>"


def _loaded(artifact: Artifact | str | Path) -> Artifact:
    return artifact if isinstance(artifact, Artifact) else load(artifact)


def _in_order(own: Artifact, feeds: Feeds) -> dict[str, Any]:
    return {spec.name: feeds[spec.name] for spec in own.inputs}


def _outputs(own: Artifact, answer: Frame) -> dict[str, np.ndarray]:
    absent = [spec.name for spec in own.outputs if spec.name not in answer.tensors]
    if absent:
        raise DeviceError(f"the board gave no {', '.join(absent)}", hint="export the model again")
    return {spec.name: answer.tensors[spec.name].copy() for spec in own.outputs}
