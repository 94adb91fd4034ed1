"""`deploykit push`: an artifact into an OCI registry."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import ArtifactPath, Debug, Json, Key, PlainHttp


def push(
    artifact: ArtifactPath,
    reference: Annotated[str, typer.Argument(metavar="REF", help="Such as registry.example.org/team/model:v1.")],
    key: Key = None,
    plain_http: PlainHttp = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Send an artifact, with its signature, to an OCI registry.

    Every hash is checked first, and with --key the signature. What the registry has is not sent again. Logins are
    Docker's (`docker login`), or DEPLOYKIT_REGISTRY_USER and DEPLOYKIT_REGISTRY_PASSWORD.
    """
    from deploykit.cli.tables import pairs
    from deploykit.judge import figures
    from deploykit.pipeline.progress import Steps
    from deploykit_trust.oci.push import push as run_push

    with Steps().step(f"sending {reference}"):
        found = run_push(artifact, reference, key=key, plain_http=plain_http)
    document = {
        "path": artifact,
        "reference": found.reference,
        "pinned": found.pinned,
        "digest": found.digest,
        "sent": list(found.sent),
        "bytes_sent": found.bytes_sent,
    }
    rows = [
        ("pushed", found.reference),
        ("sent", f"{len(found.sent)} files, {figures.size(found.bytes_sent)}; the registry had the others"),
        ("fetch with", f"deploykit pull {found.pinned}"),
    ]
    return Answer(document, [pairs("", rows)])
