"""Files that are either whole or absent: temporary sibling, fsync, re-read, rename.

Used for artifacts (folders) and for single files; nothing here knows what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import ArtifactError

_CHUNK_BYTES = 1 << 20


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
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staging_folder(destination: Path) -> Iterator[Path]:
    """A temporary sibling of `destination`, removed on leaving unless it was renamed by `publish_folder`.

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
    """Make `staging` appear as `destination` in one rename, replacing an older artifact.

    Raises:
        ArtifactError: the disk refuses; the older artifact is left as it was.
    """
    try:
        for path in sorted(staging.rglob("*")):
            _fsync(path)
        _fsync(staging)
        if not destination.exists():
            staging.rename(destination)
        else:
            _exchange(staging, destination)
        _fsync(destination.parent)
    except OSError as error:
        raise ArtifactError(f"cannot publish {destination}: {error.strerror or error}") from error


def _exchange(staging: Path, destination: Path) -> None:
    retired = staging.with_name(staging.name.replace(".staging-", ".retired-"))
    destination.rename(retired)
    try:
        staging.rename(destination)
    except OSError:
        retired.rename(destination)
        raise
    shutil.rmtree(retired, ignore_errors=True)


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
