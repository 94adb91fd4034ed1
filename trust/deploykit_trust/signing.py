"""`deploykit.sign`: a lineage statement and a signature over every file, written into the artifact's folder.

The signature is the OpenSSF model-signing format (`model.sig`), which `model_signing verify key` checks as well. It is
over what `deploykit.load` has checked: nothing is signed that does not hash as its manifest says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deploykit.artifact import manifest as layout
from deploykit.artifact.storage import remove_dead_parts, sha256_of, write_file
from deploykit.contract.errors import ArtifactError
from deploykit.plugin.artifact import load
from deploykit_trust import envelope
from deploykit_trust.keys import PublicKey, read_private_key
from deploykit_trust.lineage import lineage_statement
from deploykit_trust.source import Source, source_of
from deploykit_trust.statement import LEFT_OUT, statement_of


@dataclass(frozen=True)
class Signed:
    """What was signed.

    Attributes:
        path: the artifact's folder.
        fingerprint: sha256 of its manifest.
        files: paths of the signed files.
        key: the public key, by the sha256 of its PEM form.
        source: the commit that was recorded; None for none.
        status: of the artifact: a signature says who made it, not that it passed its gates.
    """

    path: Path
    fingerprint: str
    files: tuple[str, ...]
    key: str
    source: Source | None
    status: str


def sign(path: str | Path, key: str | Path, *, password: str | None = None, source: str | Path | None = None) -> Signed:
    """Sign an artifact; a signature that is there is replaced.

    Args:
        path: the artifact's folder.
        key: PEM file of a private key (P-256, P-384 or P-521).
        password: of an encrypted key; None for `$DEPLOYKIT_KEY_PASSWORD`.
        source: folder in the git checkout whose commit is recorded as the source; None records none.
    Raises:
        ArtifactError: it is damaged, holds files that its manifest does not list, or cannot be written.
        UsageError: the key or the folder of the source cannot be read.
        MissingDependencyError: `cryptography` is not installed.
    """
    signer = read_private_key(key, password)
    artifact = load(path)
    commit = None if source is None else source_of(source)
    _refuse_left_overs(artifact.path, {entry.path for entry in artifact.manifest.files})
    write_file(
        artifact.path / layout.LINEAGE_NAME, envelope.seal(lineage_statement(artifact, commit), signer)
    )  # a kill from here on leaves a signature of another lineage, which is refused
    digests = {
        **{entry.path: entry.sha256 for entry in artifact.manifest.files},
        layout.MANIFEST_NAME: artifact.manifest_digest,
        layout.LINEAGE_NAME: sha256_of(artifact.path / layout.LINEAGE_NAME),
    }
    artifact.check_unaltered()
    write_file(artifact.path / layout.SIGNATURE_NAME, envelope.seal(statement_of(artifact.path.name, digests), signer))
    return _signed(artifact.path, artifact.manifest_digest, digests, signer.public, commit, artifact.status)


def _signed(
    path: Path, fingerprint: str, digests: dict[str, str], key: PublicKey, source: Source | None, status: str
) -> Signed:
    return Signed(path, fingerprint, tuple(sorted(digests)), key.hint, source, status)


def _refuse_left_overs(folder: Path, listed: set[str]) -> None:
    """Refuse what a load tolerates and a signature does not cover: what a build program left, say."""
    known = {*listed, layout.MANIFEST_NAME, layout.LINEAGE_NAME, *LEFT_OUT}
    for name in layout.RECORD_NAMES:
        remove_dead_parts(folder / name)
    for found in files_in(folder):
        if found not in known:
            message = f"{found} lies in {folder}, and a signature would not cover it"
            raise ArtifactError(message, hint="move it out of the folder, then sign")


def files_in(folder: Path) -> list[str]:
    """Every file of a folder, as paths from it; links and other things that are no folders are among them."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        found += [Path(root, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)
