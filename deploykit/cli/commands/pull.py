"""`deploykit pull`: an artifact out of an OCI registry, whole or absent."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json, Key, PlainHttp


def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="Such as registry.example.org/team/model:v1, or ...@sha256:...")
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the artifact.  [default: last part of the name]")
    ] = None,
    key: Key = None,
    plain_http: PlainHttp = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Fetch an artifact from an OCI registry; nothing of it is run.

    Every byte is checked against its digest, and with --key the signature, before the folder appears. A pull that was
    cut goes on where it was. A tag can be moved: only --key, or a reference by digest, says that it is the same one.
    """
    from deploykit.cli.tables import pairs
    from deploykit.pipeline.progress import Steps
    from deploykit_trust.oci.pull import pull as run_pull

    with Steps().step(f"fetching {reference}"):
        found = run_pull(reference, output, key=key, plain_http=plain_http)
    artifact = found.artifact
    document = {
        "reference": reference,
        "pinned": found.pinned,
        "digest": found.digest,
        "path": str(artifact.path),
        "fingerprint": artifact.fingerprint,
        "signed": key is not None,
    }
    signed = "not asked for (--key)" if key is None else f"every file is signed by {key}"
    rows = [
        ("pulled", str(artifact.path)),
        ("artifact", f"{artifact.target}, {artifact.precision}, {artifact.status}"),
        ("signature", signed),
        ("by digest", found.pinned),
    ]
    return Answer(document, [pairs("", rows)])
