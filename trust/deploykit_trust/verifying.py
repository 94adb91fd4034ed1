"""Whether an artifact that was loaded is signed by a key: what `deploykit.load(path, key=...)` asks.

Closed: no signature, another key, a file that is not signed, a signature that leaves out what may be read, and
whatever cannot be read is a refusal. The signature's own list of what it leaves out is never followed: records are
known by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import manifest as layout
from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import ArtifactError
from deploykit.contract.reading import read_bytes
from deploykit_trust import envelope
from deploykit_trust.keys import PublicKey, read_public_key
from deploykit_trust.lineage import Lineage, read_lineage
from deploykit_trust.signing import files_in
from deploykit_trust.statement import LEFT_OUT, signed_files

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

_COPY = "copy the artifact from its maker again"


def check_signature(artifact: StoredArtifact, key: str | Path) -> Lineage | None:
    """Check that every file of a loaded artifact is signed by a key.

    Args:
        artifact: whose files are as its manifest says.
        key: PEM file of the public key.
    Returns:
        Its lineage; None where another tool signed it, which writes none.
    Raises:
        ArtifactError: it is not; the message says what is wrong.
        UsageError: `key` is no public key that can be used.
        MissingDependencyError: `cryptography` is not installed.
    """
    public = read_public_key(key)
    signed = signed_files(_payload(artifact.path, public))
    wanted = {layout.MANIFEST_NAME: artifact.manifest_digest}
    wanted |= {entry.path: entry.sha256 for entry in artifact.manifest.files}
    for name, digest in wanted.items():
        if signed.get(name) != digest:
            how = "is not signed" if name not in signed else "is not what was signed"
            raise ArtifactError(f"{name} of {artifact.path.name} {how}", hint=_COPY)
    _check_others(artifact.path, {name: digest for name, digest in signed.items() if name not in wanted})
    _refuse_unsigned(artifact.path, signed.keys() | set(LEFT_OUT))
    return read_lineage(artifact, public)


def signed_by(folder: Path, key: str | Path) -> dict[str, str]:
    """The files that the signature in a folder is about, if it is of the key: path -> sha256; no file is looked at.

    Raises:
        ArtifactError, UsageError, MissingDependencyError: as for `check_signature`.
    """
    return signed_files(_payload(folder, read_public_key(key)))


def _payload(folder: Path, key: PublicKey) -> bytes:
    path = folder / layout.SIGNATURE_NAME
    if not path.is_symlink() and not path.exists():
        hint = "ask its maker for `deploykit sign`, or load it without a key"
        raise ArtifactError(f"{folder.name} is not signed: it has no {path.name}", hint=hint)
    return envelope.opened(read_bytes(path, limit=envelope.LARGEST_BYTES), key, what=path.name)


def _check_others(folder: Path, signed: dict[str, str]) -> None:
    """Files beside those of the manifest that were signed with them: the lineage, records where another tool signed."""
    for name, digest in signed.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{name} was signed, and is missing in {folder}", hint=_COPY)
        if sha256_of(path) != digest:
            raise ArtifactError(f"{name} of {folder.name} is not what was signed", hint=_COPY)


def _refuse_unsigned(folder: Path, known: set[str]) -> None:
    for name in files_in(folder):
        if name not in known and not layout.is_part_of_record(name):  # of a writer that was killed: nobody reads it
            raise ArtifactError(f"{name} lies in {folder}, and is not signed", hint="move it out of the folder")
        if (folder / name).is_symlink():
            raise ArtifactError(f"{name} of {folder.name} is a symbolic link; artifacts hold no links", hint=_COPY)
