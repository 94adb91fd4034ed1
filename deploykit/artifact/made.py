"""Which artifacts this account has made on this machine: what they hold was compiled here, and may run here.

Every manifest that an export or a build writes is remembered by its sha256, as an empty file in the state folder of the
user. Native code of other artifacts runs only after a signature or an explicit flag (`Target.open`). Whoever can write
into that folder can run programs as this user already.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact.storage import state_folder

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

MADE_HERE = "made here"
"""What vouches for an artifact that this process is making."""
_known: set[str] = set()


def remember(manifest: bytes) -> None:
    """Remember the bytes of a manifest that was written here; where no state can be kept, for this process only."""
    digest = hashlib.sha256(manifest).hexdigest()
    _known.add(digest)
    mark = state_folder() / "made" / digest
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark.touch()


def is_own(artifact: StoredArtifact) -> bool:
    """Whether the artifact was made here, by its manifest as it was read."""
    try:
        digest = artifact.manifest_digest
    except OSError:  # a folder without one was not published by anybody
        return False
    return digest in _known or _is_mark(state_folder() / "made" / digest)


def _is_mark(path: Path) -> bool:
    """Whether this account put a mark there: under `sudo`, say, the folder may be another's."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())
