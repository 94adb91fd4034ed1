"""`deploykit sbom`: a bill of materials of an artifact, with a model card."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import ArtifactPath, Debug, Json, Key


def sbom(
    artifact: ArtifactPath,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here.  [default: standard output]")
    ] = None,
    key: Key = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write what an artifact consists of as CycloneDX 1.6, with a model card.

    Files, tools and calibration data by their hashes; inputs, outputs, parity and speed with their evidence. Nothing of
    the artifact is run, and the same artifact gives the same document.
    """
    from deploykit.artifact.storage import write_file
    from deploykit.contract.errors import UsageError
    from deploykit_trust.sbom import sbom as describe

    document = describe(artifact, key=key)
    text = json_format.dumps(document, indent=2, ensure_ascii=False)
    if output is None:
        return Answer(document, [text])
    write_file(Path(output), f"{text}\n".encode(), error=UsageError)
    return Answer({"path": artifact, "output": output}, [f"written to {output}"])
