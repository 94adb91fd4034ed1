"""`Artifact`: an exported model on disk, opened by the toolchain that made it.

An artifact is a folder. Loading trusts nothing: no pickle, no path outside the folder, no links, sizes and hashes
checked before a runtime sees a byte. What is refused is refused with the reason.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.artifact.golden import golden_tolerance
from deploykit.artifact.store import StoredArtifact, check_files, read
from deploykit.contract.errors import ArtifactError, ParityError, UsageError
from deploykit.contract.host import this_host
from deploykit.contract.requirements import Missing, Preflight, Requirements, check
from deploykit.contract.session import FunctionSession, Session
from deploykit.judge.parity import Metrics, ParityReport, compare_sessions, failures_of
from deploykit.judge.slower import time_shares
from deploykit.plugin.registry import check_agreement, toolchain
from deploykit.plugin.target import Target

if TYPE_CHECKING:
    from deploykit.artifact.manifest import Manifest
    from deploykit.artifact.seal import Seal
    from deploykit.places.place import Place


FLAG, SIGNATURE = "allowed by the caller", "signed"
"""What vouches for native code in an artifact that was loaded."""


class Artifact(StoredArtifact):
    """An exported model. Made by `deploykit.export`, read back by `deploykit.load`.

    Args:
        path, manifest, seal: see `StoredArtifact`.
        place: where it is opened; None for this process.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        place: Place | None = None,
        seal: Seal | None = None,
        vouched: str = "",
    ) -> None:
        super().__init__(path, manifest, seal=seal, vouched=vouched)
        self._place = place

    def open(self, *, threads: int | None = None, place: Place | None = None) -> Session:
        """Open the artifact in its runtime.

        Args:
            threads: for the runtime; None for all cores that its process may use.
            place: where, such as `deploykit.places.Child()`; None for where the artifact is: this process, if nothing
                else was said.
        Raises:
            MissingDependencyError: the runtime is not installed.
            DeviceError: the artifact must first be built on its device, or this machine lacks what it needs; see
                `preflight`.
        """
        return (self if place is None else self.at(place)).plugin().open(self, threads=threads)

    @property
    def requirements(self) -> Requirements:
        """What the artifact needs of the machine that runs it; `preflight` compares that with this machine."""
        try:
            return self.plugin().needs(self)
        except UsageError:  # no such toolchain is installed here
            return self.manifest.requirements or Requirements()

    def preflight(self) -> Preflight:
        """Whether this machine (or the board) has what the artifact needs, and what is done without; opens nothing."""
        try:
            return self.plugin().preflight(self)
        except UsageError as error:
            found = check(self.requirements, this_host())
            return replace(found, missing=(*found.missing, Missing(error.message, error.hint or "install its plugin")))

    def on_board(self, address: str) -> Artifact:
        """The same artifact, opened, verified and profiled on a board; short for `at(deploykit.places.Ssh(address))`.

        It is copied to the board over SSH, and code is executed there.

        Args:
            address: as for `ssh`, such as `user@host`; or `adb:SERIAL` for an Android device.
        """
        from deploykit.places.address import board_at

        return self.at(board_at(address))

    def at(self, place: Place) -> Artifact:
        """The same artifact, opened, verified and profiled in another place; see `deploykit.places`."""
        return Artifact(self.path, self.manifest, place=place, seal=self._seal, vouched=self.vouched)

    def plugin(self) -> Target:
        """The toolchain that it was made with and is run by."""
        check_agreement(self.manifest)
        found = toolchain(self.manifest.toolchain)
        return found if self._place is None else found.at(self._place)

    def verify(self) -> Metrics:
        """Check every hash, then run the golden inputs and compare with the golden outputs.

        Returns:
            The worst figures of the artifact here against the artifact where it was made.
        Raises:
            ArtifactError: a file is damaged.
            ParityError: this machine computes something else than the one that made the artifact.
        """
        check_files(self.path, self.manifest)
        with self.open() as session:
            return self.check_golden(session)

    def check_golden(self, session: Session, *, where: str = "here") -> Metrics:
        """Compare what a session gives for the golden inputs with the golden outputs.

        Args:
            session: the session of this artifact, wherever it is open.
            where: the where that is, for the message.
        Raises:
            ParityError: they differ by more than the precision allows.
        """
        golden = self.golden()
        recorded = iter(golden.outputs)
        reference = FunctionSession(lambda _: next(recorded), self.inputs, self.outputs)
        link = compare_sessions(reference, session, golden.inputs)
        misses = failures_of(link, golden_tolerance(self.manifest.precision, self.manifest.facts.golden_min_sqnr_db))
        if misses:
            message = f"{self.path.name} gives other outputs {where} than where it was made: {'; '.join(misses)}"
            raise ParityError(message, report=self._require_parity(), candidate=self)
        return link.worst

    def summary(self) -> dict[str, Any]:
        """Plain data for `--json` and tables: the manifest plus path and profile."""
        data: dict[str, Any] = json.loads(self.manifest.to_json())
        data["path"] = str(self.path)
        data["size_bytes"] = self.size_bytes
        data["profile"] = msgspec.to_builtins(self.profile)
        data["choice"] = msgspec.to_builtins(self.choice)
        if self.profile:
            data["profile"]["worth_it"] = self.profile.worth_it
        shares = time_shares(self.profile, self.achieved)
        for each in data["achieved"].setdefault("float_activations", []):  # older manifests have none
            each["time_share"] = shares.get(each["name"])
        found = self.preflight()
        data["preflight"] = {**msgspec.to_builtins(found), "ok": found.ok}
        return data

    def _require_parity(self) -> ParityReport:
        if self.manifest.parity is None:
            raise ArtifactError(f"{self.path.name} carries no parity report; it was never run")
        return self.manifest.parity


class Exported(Artifact):
    """What an export returns: it was run and compared, so that its parity report is always there."""

    @classmethod
    def of(cls, artifact: Artifact) -> Exported:
        """The same artifact, known to have been exported."""
        place, seal, vouched = artifact._place, artifact._seal, artifact.vouched
        return cls(artifact.path, artifact.manifest, place=place, seal=seal, vouched=vouched)

    @property
    def parity(self) -> ParityReport:
        """The parity report of the export."""
        return self._require_parity()


def load(path: str | Path, *, key: str | Path | None = None, allow_native: bool = False) -> Artifact:
    """Read an artifact and check every file's size and hash before anything uses it.

    Args:
        key: PEM file of a public key that must have signed the artifact (`deploykit sign`); None asks for no signature.
        allow_native: native code that the artifact holds may run although it was made elsewhere and nobody's signature
            was asked for.
    Raises:
        ArtifactError: not an artifact, damaged, truncated, with a path that leaves the folder, a link, or written by
            a newer deploykit; or, where a key is given, not signed by it. The message says which and what to do.
        UsageError: `key` is not a public key that can be used.
        MissingDependencyError: a key is given, and `cryptography` is not installed.
    """
    folder, manifest, seal = read(path, check_agreement)
    found = Artifact(folder, manifest, seal=seal, vouched=FLAG if allow_native else "")
    if key is not None:
        from deploykit_trust.verifying import check_signature

        check_signature(found, key)
        found.vouched = SIGNATURE
    return found
