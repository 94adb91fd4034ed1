"""Files that are either whole or absent: temporary sibling, fsync, re-read, rename.

Used for artifacts (folders) and for single files; nothing here knows what is in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import ArtifactError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
_ATTEMPTS = 20


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write `path` so that a reader or a crash sees the old or the new content, never a part.

    Raises:
        ArtifactError: the folder cannot be written, the disk is full, or re-reading gives other bytes.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if sha256_of(temporary) != hashlib.sha256(data).hexdigest():
            raise ArtifactError(f"{path.name} reads back differently than it was written; the disk may be failing")
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}", hint="check space and permissions"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def staging_folder(destination: Path) -> Iterator[Path]:
    """A temporary sibling of `destination`, removed on leaving with what is then in it; see `publish_folder`.

    Left-overs of killed processes for the same destination are removed first.

    Raises:
        ArtifactError: the parent folder cannot be written.
    """
    _remove_left_overs(destination)
    staging = destination.with_name(f".{destination.name}.staging-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot create {destination.parent}: {error.strerror or error}", hint="choose another output="
        ) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish_folder(staging: Path, destination: Path) -> None:
    """Make `staging` appear as `destination`, replacing an older artifact; of several writers the last one wins.

    Raises:
        ArtifactError: the disk refuses; the older artifact is left as it was.
    """
    try:
        for path in sorted(staging.rglob("*")):
            _fsync(path)
        _fsync(staging)
        _replace(staging, destination)
        _fsync(destination.parent)
    except OSError as error:
        raise ArtifactError(f"cannot publish {destination}: {error.strerror or error}") from error


def _replace(staging: Path, destination: Path) -> None:
    """Rename where nothing is there, else exchange; start over when another writer changed that meanwhile."""
    for attempt in range(_ATTEMPTS):
        try:
            staging.rename(destination)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED or attempt == _ATTEMPTS - 1:
                raise
        if _exchange(staging, destination):
            return


def _exchange(staging: Path, destination: Path) -> bool:
    """Swap the two folders (the older one goes with the staging folder); False where `destination` is gone."""
    try:
        _exchange_at_once(staging, destination)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise
        return _exchange_in_turn(staging, destination)
    return True


def _exchange_at_once(staging: Path, destination: Path) -> None:
    """Linux swaps two names in one step, so that a reader always finds an artifact.

    Raises:
        OSError: ENOSYS on other systems, EINVAL on file systems that cannot.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(destination), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(destination))


def _exchange_in_turn(staging: Path, destination: Path) -> bool:
    """Two renames; for a moment nothing is there, and `_remove_left_overs` mends it should we be killed just then."""
    retired = destination.with_name(f".{destination.name}.retired-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        destination.rename(retired)
    except FileNotFoundError:
        return False
    try:
        staging.rename(destination)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            retired.rename(destination)
            raise
        shutil.rmtree(retired, ignore_errors=True)  # another writer was quicker: theirs replaced it
        return False
    shutil.rmtree(retired, ignore_errors=True)
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_left_overs(destination: Path) -> None:
    """Remove staging folders of dead processes; bring back an artifact that a kill left between two renames."""
    if not destination.parent.is_dir():
        return
    for kind in ("staging", "retired"):
        for path in destination.parent.glob(f".{glob_escape(destination.name)}.{kind}-*"):
            if _owner_is_alive(path):
                continue
            if kind == "retired" and not destination.exists():
                path.rename(destination)
            else:
                shutil.rmtree(path, ignore_errors=True)


def glob_escape(name: str) -> str:
    """Escape the characters that `Path.glob` would expand."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _owner_is_alive(path: Path) -> bool:
    owner = path.name.rsplit("-", 2)[-2]
    if not owner.isdigit():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
