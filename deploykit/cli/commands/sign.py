"""`deploykit sign`: who made this artifact, of what, and that nobody changed it since."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import ArtifactPath, Debug, Json


def sign(
    artifact: ArtifactPath,
    key: Annotated[
        str,
        typer.Option("--key", metavar="PRIVATE_KEY", help="PEM file: P-256, P-384 or P-521, encrypted or not."),
    ],
    source: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Record the commit of the git checkout that this folder lies in."),
    ] = ".",
    no_source: Annotated[bool, typer.Option("--no-source", help="Record no commit.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Sign an artifact: a signature over every file, and a lineage statement.

    The signature (model.sig, in the OpenSSF model-signing format) and the lineage (lineage.sigstore.json) are written
    into the artifact. The password of an encrypted key is read from DEPLOYKIT_KEY_PASSWORD.
    """
    from deploykit.artifact.manifest import VERIFIED
    from deploykit.cli.tables import pairs
    from deploykit_trust.signing import sign as run_sign

    found = run_sign(artifact, key, source=None if no_source else source)
    if found.status != VERIFIED:
        note(f"the artifact's status is {found.status!r}: a signature says who made it, and not that it is right")
    commit = found.source
    document = {
        "path": artifact,
        "fingerprint": found.fingerprint,
        "key": found.key,
        "files": list(found.files),
        "source": commit,
        "status": found.status,
    }
    rows = [
        ("signed", f"{len(found.files)} files of {artifact}"),
        ("fingerprint", found.fingerprint),
        ("key", found.key),
        ("source", "none" if commit is None else commit.commit + (" with changes" if commit.dirty else "")),
        ("check with", f"deploykit verify {artifact} --key pub.pem"),
    ]
    return Answer(document, [pairs("", rows)])
