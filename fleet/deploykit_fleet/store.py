"""`Store`: artifacts addressed by their content, and which cell of a release is which of them.

    objects/FINGERPRINT/     an artifact; also the candidate of a cell that missed a gate
    cells/KEY.json           a finished cell: what came of everything that its key stands for
    captures/KEY.json        which graph a model's sources gave
    boards/FINGERPRINT-KEY.json  what a board said of an artifact
    releases/ID/             release.json and junit.xml of one run; logs of what failed
    calibration/             statistics, as every `cache_dir` of deploykit
    work/ID/                 who is at work now, see `deploykit_fleet.lease`
    release.json, junit.xml  of the newest run

Everything appears by a rename, whole or not at all, and in an order in which nothing points at what is not there:
first the object, then the cell, then the release.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from deploykit.artifact.manifest import MANIFEST_NAME
from deploykit.artifact.storage import sha256_of, write_file
from deploykit.contract.errors import ArtifactError, DeploykitError
from deploykit.contract.reading import read_json
from deploykit_fleet.outcome import Cell, DeviceRun

S = TypeVar("S", bound=msgspec.Struct)
_HEX = re.compile("[0-9a-f]{64}")
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
FORMAT = 1


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A finished cell as it is stored.

    Attributes:
        cell: its artifact is relative to the store.
        profile: `pending`, `done`, or why it cannot be measured here.
        format: of this layout; another one is not read.
    """

    cell: Cell
    profile: str = "pending"
    format: int = FORMAT


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """Which graph the sources behind a key gave, as `CapturedModel.fingerprint`."""

    model: str
    fingerprint: str


class _Entry(msgspec.Struct):
    path: str
    size: int


class _Files(msgspec.Struct):
    files: list[_Entry]


class Store:
    """A store in a folder.

    Args:
        root: its folder; made by `prepare`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects, self.cells = root / "objects", root / "cells"
        self.captures, self.boards = root / "captures", root / "boards"
        self.releases, self.calibration, self.work = root / "releases", root / "calibration", root / "work"

    def prepare(self) -> None:
        """Make its folders.

        Raises:
            ArtifactError: they cannot be made, or the folder holds something else.
        """
        try:
            if self.root.is_dir() and not self.objects.is_dir() and any(self.root.iterdir()):
                message = f"{self.root} exists and is no store of deploykit; it is left alone"
                raise ArtifactError(message, hint="name another folder as store")
            for folder in (self.objects, self.cells, self.captures, self.boards, self.releases, self.work):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make {self.root}: {error.strerror or error}"
            raise ArtifactError(message, hint="check permissions, or name another folder") from error

    def finished(self, key: str) -> Finished | None:
        """The finished cell of a key; None where there is none, or what it points at is not whole any more."""
        found = read_record(self.cells / f"{key}.json", Finished)
        if found is None or found.format != FORMAT or found.cell.key != key:
            return None
        return found if self.holds(found.cell.fingerprint) else None

    def holds(self, fingerprint: str) -> bool:
        """Whether an artifact is there: its manifest is the one, and its files have the sizes that this says.

        Hashes of the files are checked where they are opened: a run with nothing to do reads no weights.
        """
        if not _HEX.fullmatch(fingerprint):
            return False
        folder = self.object(fingerprint)
        try:
            if sha256_of(folder / MANIFEST_NAME) != fingerprint:
                return False
            files = read_json(folder / MANIFEST_NAME, _Files).files
            return all((folder / entry.path).stat().st_size == entry.size for entry in files)
        except (OSError, DeploykitError):
            return False

    def object(self, fingerprint: str) -> Path:
        """Where an artifact lies, or would."""
        return self.objects / fingerprint

    def keep(self, folder: Path, fingerprint: str) -> Path:
        """Move a complete artifact into the store; where it is there already, and whole, that one stays.

        Returns:
            Where it lies.
        Raises:
            ArtifactError: the disk refuses.
        """
        place = self.object(fingerprint)
        try:
            while not self.holds(fingerprint):
                try:
                    folder.rename(place)
                except OSError as error:
                    if error.errno not in _OCCUPIED:
                        raise
                    self.discard(place)  # what lies there is damaged
            sync(self.objects)
        except OSError as error:
            message = f"cannot keep an artifact in {self.objects}: {error.strerror or error}"
            raise ArtifactError(message, hint="check space and permissions") from error
        return place

    def discard(self, path: Path) -> None:
        """Remove a file or folder so that nobody sees a part of it; nothing where it is gone."""
        trash = self.work / f".trash-{uuid.uuid4().hex}"
        try:
            path.rename(trash)
        except FileNotFoundError:
            return
        if trash.is_dir() and not trash.is_symlink():
            shutil.rmtree(trash, ignore_errors=True)
        else:
            trash.unlink(missing_ok=True)

    def finish(self, found: Finished) -> None:
        """Record a finished cell, or what has become known of it since."""
        write_file(self.cells / f"{found.cell.key}.json", msgspec.json.encode(found))

    def capture(self, key: str) -> Capture | None:
        """The graph that was captured from the sources of a key; None where none was."""
        return read_record(self.captures / f"{key}.json", Capture)

    def record_capture(self, key: str, found: Capture) -> None:
        """Remember which graph the sources of a key gave."""
        write_file(self.captures / f"{key}.json", msgspec.json.encode(found))

    def board(self, key: str) -> DeviceRun | None:
        """What a board said; None where it was not asked."""
        return read_record(self.boards / f"{key}.json", DeviceRun)

    def record_board(self, key: str, run: DeviceRun) -> None:
        """Remember what a board said."""
        write_file(self.boards / f"{key}.json", msgspec.json.encode(run))

    def recorded(self) -> Iterator[str]:
        """Keys of all cells that are recorded."""
        for path in sorted(self.cells.glob("*.json")):
            if _HEX.fullmatch(path.stem):
                yield path.stem


def relative(fingerprint: str) -> str:
    """Where an artifact lies, from the store's folder."""
    return f"objects/{fingerprint}"


def read_record(path: Path, kind: type[S]) -> S | None:
    """A record of a store; None where there is none, or it is damaged: it is made again then."""
    try:
        return read_json(path, kind) if path.is_file() else None
    except (DeploykitError, OSError):  # a folder that may not be looked into: `prepare` says so
        return None


def sync(folder: Path) -> None:
    """Make renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
