"""What a search has measured, written after every step, so that a killed one goes on where it was.

It lies beside the output, in `<output>.tune`, and is of one search: model, data, request and goal are its key, and
another search begins anew. It is removed when a search ends, found or not: only what was killed or interrupted, or
whose metric raised, leaves one. While a search runs, its folder is locked: two that wrote one state would each take the
other's steps for their own, and the first to end would remove what the other still needs.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from deploykit.artifact.storage import write_file
from deploykit.contract.errors import ArtifactError, DeploykitError
from deploykit.contract.reading import read_json
from deploykit.contract.recipe import Recipe
from deploykit_tuning.ladder import Figures, LadderStep

_NAME = "state.json"
_MARK = "deploykit tune"


@dataclass(frozen=True)
class Entry:
    """One step: how it is known again, what is told of it, and its candidate where it came to one."""

    key: str
    step: LadderStep
    recipe: Recipe | None = None
    figures: Figures | None = None


@dataclass
class State:
    """All that is written.

    Attributes:
        of: key of the search.
        reference: scores of the float model, and their mean; None without a task.
        entries: in the order of the ladder.
    """

    of: str
    made_by: str = _MARK
    reference: tuple[float, list[float] | None] | None = None
    entries: list[Entry] = field(default_factory=list)


class Journal:
    """The state of one search, on disk.

    Args:
        folder: the folder of the search; made where it is not there.
    Raises:
        ArtifactError: the folder holds something that no search wrote, or another search is writing there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise self._foreign()
        self._lock: int | None = _locked(folder)
        try:
            found = self._read()
            self._state = found or State("")
            if found is None:
                self._write()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write here: the state stays for the search that goes on from it."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # for processes that were forked meanwhile, too
            os.close(self._lock)
            self._lock = None

    def begin(self, key: str) -> int:
        """Go on with a search, or begin another one.

        Args:
            key: the key of the search; what was measured for another key is left aside.
        Returns:
            How many steps are known.
        """
        if self._state.of != key:
            self._state = State(key)
            self._write()
        return len(self._state.entries)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not self._state.entries and self._state.reference is None

    def _read(self) -> State | None:
        path = self.folder / _NAME
        if not self.folder.exists():
            return None
        if not path.is_file():
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                return None
            raise self._foreign()
        try:
            found = read_json(path, State)
        except DeploykitError as error:
            raise ArtifactError(f"{self.folder}: {error.message}", hint=f"remove {self.folder}") from error
        if found.made_by != _MARK:
            raise self._foreign()
        return found

    def _foreign(self) -> ArtifactError:
        return ArtifactError(f"{self.folder} is no state of a search; it is left alone", hint="choose another output=")

    @property
    def reference(self) -> tuple[float, list[float] | None] | None:
        """Scores of the float model; None where they were not measured."""
        return self._state.reference

    def keep_reference(self, value: float, each: list[float] | None) -> None:
        """Write the scores of the float model."""
        self._state.reference = (value, each)
        self._write()

    def recall(self, key: str) -> Entry | None:
        """What was found of a step; None where it was not finished."""
        return next((entry for entry in self._state.entries if entry.key == key), None)

    def add(self, entry: Entry) -> None:
        """Write a finished step."""
        self._state.entries.append(entry)
        self._write()

    def _write(self) -> None:
        write_file(self.folder / _NAME, msgspec.json.encode(self._state))

    def remove(self) -> None:
        """Leave nothing: the search is over."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)


def _locked(folder: Path) -> int | None:
    """The descriptor of a locked folder, which is made; None where the file system has no locks.

    Raises:
        ArtifactError: another search holds it, or it cannot be made.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            hint = "check space and permissions, or choose another output="
            raise ArtifactError(f"cannot write {folder}: {error.strerror}", hint=hint) from error
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(found)
            raise ArtifactError(
                f"another search is writing to {folder}", hint="wait until it ends, or choose another output="
            ) from None
        except OSError:
            os.close(found)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(found), folder.stat()):
                return found
        os.close(found)  # the search that held it ended meanwhile, and removed it


def key_of(*parts: Any) -> str:
    """sha256 hex of plain values."""
    return hashlib.sha256(msgspec.json.encode(parts, enc_hook=repr, order="sorted")).hexdigest()


def code_of(function: Any) -> str:
    """What tells one version of a user's function from another: its code, not what it reads.

    Of a decorated one (`torch.no_grad()`) it is the code that was decorated: all decorated functions share the rest.
    """
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        return f"partial of {code_of(function.func)}"
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    code = getattr(type(function).__call__, "__code__", None) if code is None else code
    name = getattr(function, "__qualname__", type(function).__qualname__)
    body = "" if code is None else hashlib.sha256(code.co_code + repr(_plain(code.co_consts)).encode()).hexdigest()
    return f"{name} {body}"


def _plain(constants: tuple[Any, ...]) -> list[Any]:
    """Constants without addresses: the code of inner functions by its own bytes."""
    return [(c.co_code.hex(), _plain(c.co_consts)) if hasattr(c, "co_code") else repr(c) for c in constants]
