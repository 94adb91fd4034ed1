"""What an export may replace: an artifact of deploykit, whole and with nothing else in it, or an empty folder.

Everything else is somebody's: a project, a repository, a browser extension (which has a `manifest.json` too), notes
that were put into an artifact. It is refused by name and left alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from deploykit.artifact import manifest as layout
from deploykit.artifact.manifest import Manifest
from deploykit.artifact.seal import unlisted
from deploykit.artifact.storage import sha256_of
from deploykit.contract.arguments import path as path_of
from deploykit.contract.errors import ArtifactError, reason_of
from deploykit.contract.reading import MAX_JSON_BYTES, read_bytes

_HINT = "choose another output=, or remove it"
_SHOWN = 3
_ATTEMPTS = 20


def replaceable(output: str | Path) -> Path:
    """The absolute folder of an artifact to write.

    Raises:
        ArtifactError: there, or where a failed candidate would be kept, is something else than an artifact; or no
            folder can have that name.
    """
    path = path_of("output", output)
    try:
        path = path.parent.resolve() / path.name
        if output == "" or path.name in ("", "..") or "\0" in path.name:
            raise ArtifactError(f"{str(output)!r} names no folder to write", hint="choose another output=")
        for folder in (path, failed_path(path)):
            check_replaceable(folder)
    except (OSError, ValueError, RuntimeError) as error:  # too long, with NUL, links in a circle, no working directory
        raise ArtifactError(
            f"cannot write {str(output)!r}: {reason_of(error)}", hint="choose another output="
        ) from error
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
    foreign = sorted(unlisted(folder, {entry.path for entry in manifest.files}))
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        held = ", ".join(foreign[:_SHOWN]) + more
        raise ArtifactError(f"{folder} holds {held}, which deploykit did not write; it is left alone", hint=_HINT)
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file() or path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
            message = f"{folder}: {entry.path} is not as deploykit wrote it (missing or altered); it is left alone"
            raise ArtifactError(message, hint=_HINT)
