"""What an export may replace: an artifact of deploykit, whole and with nothing else in it, or an empty folder.

Everything else is somebody's: a project, a repository, a browser extension (which has a `manifest.json` too), notes
that were put into an artifact. It is refused by name and left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from deploykit import manifest as layout
from deploykit.errors import ArtifactError
from deploykit.manifest import Manifest
from deploykit.reading import MAX_JSON_BYTES, read_bytes
from deploykit.storage import sha256_of

_HINT = "choose another output=, or remove it"
_SHOWN = 3
_ATTEMPTS = 20


def replaceable(output: str | Path) -> Path:
    """The absolute folder of an artifact to write.

    Raises:
        ArtifactError: there, or where a failed candidate would be kept, is something else than an artifact; or no
            folder can have that name.
    """
    path = Path(output)
    try:
        path = path.parent.resolve() / path.name
        if path.name in ("", "..") or "\0" in path.name:
            raise ArtifactError(f"{str(output)!r} names no folder to write", hint="choose another output=")
        for folder in (path, failed_path(path)):
            check_replaceable(folder)
    except (OSError, ValueError, RuntimeError) as error:  # too long, with NUL, links in a circle, no working directory
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ArtifactError(f"cannot write {str(output)!r}: {reason}", hint="choose another output=") from error
    return path


def failed_path(output: Path) -> Path:
    """Where the candidate that missed a gate is kept."""
    return output.with_name(f"{output.name}.failed")


def check_replaceable(path: Path) -> None:
    """Whether what is at `path`, if anything, is ours to replace.

    Raises:
        ArtifactError: it is a link, a file, a folder that deploykit did not write, an artifact that is damaged, or one
            that holds what its manifest does not list; the message names it.
    """
    if path.is_symlink():
        raise ArtifactError(f"{path} is a symbolic link; it is left alone", hint=_HINT)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ArtifactError(f"{path} exists and is not an artifact; it is left alone", hint=_HINT)
    for _ in range(_ATTEMPTS - 1):
        before = path.stat().st_ino
        try:
            return _check_ours(path)
        except (ArtifactError, FileNotFoundError):
            if not path.is_dir() or path.stat().st_ino == before:
                break
            # another export has just replaced it, and what was read is of two artifacts
    return _check_ours(path) if path.is_dir() else None


def _check_ours(folder: Path) -> None:
    if not any(folder.iterdir()):
        return
    try:
        manifest = Manifest.from_json(read_bytes(folder / layout.MANIFEST_NAME, limit=MAX_JSON_BYTES))
    except ArtifactError as error:
        message = f"{folder} exists and is not an artifact; it is left alone: {error.message}"
        raise ArtifactError(message, hint=_HINT) from error
    foreign = sorted(unlisted(folder, manifest))
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        held = ", ".join(foreign[:_SHOWN]) + more
        raise ArtifactError(f"{folder} holds {held}, which deploykit did not write; it is left alone", hint=_HINT)
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file() or path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
            message = f"{folder}: {entry.path} is not as deploykit wrote it (missing or altered); it is left alone"
            raise ArtifactError(message, hint=_HINT)


def unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What an artifact's folder holds and its manifest does not vouch for: files, links, folders without listed files.

    Records (`profile.json`, `convert.log`, what a recipe builds) are known; so is what a killed writer of one left.
    """
    files = {entry.path for entry in manifest.files}
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    yield from _unlisted(folder, "", files, folders)


def _unlisted(folder: Path, prefix: str, files: set[str], folders: set[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if name not in folders and f"{name}/" != layout.BUILD_CACHE:
                    yield f"{name}/"
                else:
                    yield from _unlisted(folder / entry.name, f"{name}/", files, folders)
            elif not entry.is_file(follow_symlinks=False) or not (name in files or _is_record(name)):
                yield name


def _is_record(name: str) -> bool:
    """What deploykit, or a recipe that is run in the artifact, writes beside its files."""
    known = name in layout.RECORD_NAMES or name in layout.BUILD_RECORD_NAMES or layout.is_part_of_record(name)
    return known or name.startswith(layout.BUILD_CACHE)
