"""What was hashed is what is opened: an artifact's folder as it was when it was loaded, and whether it still is.

Hashing a large model takes as long as reading it, so it is done once. With each hash goes what the file system says of
the file: which one it is, its size, when it was last changed. Nobody without the machine's administrator can set the
last. Before and after a runtime opens the files both are compared; only what changed is hashed again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from deploykit.artifact import manifest as layout
from deploykit.artifact.manifest import FileEntry
from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import ArtifactError

_TICK_NS = 50_000_000  # of the clock of file systems: a change so soon after another may have the same time
_INERT = frozenset({".DS_Store"})  # what file managers leave
_HINT = "copy the artifact again, or export again"
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Seal:
    """Stamps of the files of a folder, by path, as they were when they were hashed.

    Attributes:
        manifest: sha256 of the manifest as it was read; "" where it was not.
    """

    folder: Path
    stamps: dict[str, Stamp]
    manifest: str = ""

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


def _refuse_unlisted(folder: Path, listed: Set[str]) -> None:
    """An artifact holds what its manifest lists, and records of ours: what no hash vouches for may be read or run."""
    for name in unlisted(folder, listed):
        held = [folder / name] if not name.endswith("/") else (folder / name).rglob("*")
        found = next((path for path in held if path.is_symlink() or not path.is_dir()), None)
        if found is None:
            continue  # nothing in an empty folder can be read
        path = found.relative_to(folder).as_posix()
        raise ArtifactError(
            f"{path} lies in {folder}, and its manifest does not list it",
            hint="nothing but an artifact's own files may be there: move it out of the folder",
        )


def unlisted(folder: Path, listed: Set[str]) -> Iterator[str]:
    """What an artifact's folder holds and its manifest does not vouch for, links and folders of their own included.

    Records (`profile.json`, `convert.log`, what a build makes) are known; so is what a killed writer of one left.

    Args:
        listed: paths of the manifest's files.
    Returns:
        Paths from the folder; that of a folder without listed files ends with a slash.
    """
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    yield from _unlisted(folder, "", listed, folders)


def _unlisted(folder: Path, prefix: str, listed: Set[str], folders: Set[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if name in folders or f"{name}/" == layout.BUILD_CACHE or name.startswith(layout.BUILD_CACHE):
                    yield from _unlisted(folder / entry.name, f"{name}/", listed, folders)
                else:
                    yield f"{name}/"
            elif not (name in listed or (entry.is_file(follow_symlinks=False) and _is_record(name))):
                yield name


def _is_record(name: str) -> bool:
    """What deploykit, a build program that is run in the artifact, or a file manager leaves beside its files."""
    known = name in layout.RECORD_NAMES or name in layout.BUILD_RECORD_NAMES or layout.is_part_of_record(name)
    return known or name.startswith(layout.BUILD_CACHE) or name in _INERT
