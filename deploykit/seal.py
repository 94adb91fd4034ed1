"""What was hashed is what is opened: an artifact's folder as it was when it was loaded, and whether it still is.

Hashing a large model takes as long as reading it, so it is done once. With each hash goes what the file system says of
the file: which one it is, its size, when it was last changed. Nobody without the machine's administrator can set the
last. Before and after a runtime opens the files both are compared; only what changed is hashed again.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploykit import manifest as layout
from deploykit.errors import ArtifactError
from deploykit.manifest import FileEntry
from deploykit.storage import sha256_of

_TICK_NS = 50_000_000  # of the clock of file systems: a change so soon after another may have the same time
_INERT = frozenset({".DS_Store"})  # what file managers leave
_HINT = "copy the artifact again, or export again"
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Seal:
    """Stamps of the files of a folder, by path, as they were when they were hashed."""

    folder: Path
    stamps: dict[str, Stamp]

    def check(self, files: Iterable[FileEntry]) -> None:
        """Compare with the folder as it is now; hash what changed since.

        Raises:
            ArtifactError: a file is another one than was loaded.
        """
        for entry in files:
            path = self.folder / entry.path
            try:
                same = _stamp(path.lstat()) == self.stamps.get(entry.path)
                altered = not same and (path.is_symlink() or sha256_of(path) != entry.sha256)
            except OSError as error:
                raise ArtifactError(
                    f"{entry.path} of {self.folder} is gone; was the artifact moved?", hint=_LOAD
                ) from error
            if altered:
                raise ArtifactError(f"{entry.path} of {self.folder} was altered since it was loaded", hint=_LOAD)


_LOAD = "deploykit.load it again"


def sealed(folder: Path, files: Iterable[FileEntry]) -> Seal:
    """Check size and hash of every file, and that nothing else lies in the folder.

    Raises:
        ArtifactError: a file is missing, a link, truncated, altered, or not listed.
    """
    listed = {entry.path: entry for entry in files}
    stamps = {entry.path: _checked(folder, entry) for entry in listed.values()}
    _refuse_unlisted(folder, listed.keys())
    return Seal(folder, stamps)


def _checked(folder: Path, entry: FileEntry) -> Stamp:
    layout.check_relative(entry.path)
    path = folder
    for part in entry.path.split("/"):
        path = path / part
        if path.is_symlink():
            raise ArtifactError(f"{entry.path} is (or lies under) a symbolic link; artifacts hold no links")
    if not path.is_file():
        raise ArtifactError(f"{entry.path} is missing", hint=_HINT)
    before = path.stat()
    if before.st_size != entry.size:
        raise ArtifactError(
            f"{entry.path} has {before.st_size} bytes, the manifest says {entry.size}: truncated or altered", hint=_HINT
        )
    if sha256_of(path) != entry.sha256:
        raise ArtifactError(f"{entry.path} does not match its sha256: its content was altered", hint=_HINT)
    if _stamp(before) != _stamp(path.stat()):
        raise ArtifactError(f"{entry.path} was written while it was read", hint="load it again")
    return _stamp(before) if time.time_ns() - before.st_ctime_ns > _TICK_NS else ()


def _stamp(found: os.stat_result) -> Stamp:
    return (found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _refuse_unlisted(folder: Path, listed: Iterable[str]) -> None:
    """An artifact holds what its manifest lists, and records of ours: what no hash vouches for may be read or run."""
    known = {*listed, *layout.RECORD_NAMES, *layout.BUILD_RECORD_NAMES, *_INERT}
    for path in _names(folder, ""):
        if path in known or layout.is_part_of_record(path) or path.startswith(layout.BUILD_CACHE):
            continue
        raise ArtifactError(
            f"{path} lies in {folder}, and its manifest does not list it",
            hint="nothing but an artifact's own files may be there: move it out of the folder",
        )


def _names(folder: Path, under: str) -> Iterator[str]:
    """Paths of all that is no folder, links included."""
    with os.scandir(folder / under) as found:
        for entry in found:
            path = f"{under}{entry.name}"
            if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                yield from _names(folder, f"{path}/")
            else:
                yield path
