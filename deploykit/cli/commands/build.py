"""`deploykit build`: finish on the device what could only be prepared elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import ArtifactPath, Debug, Json, NoProfile, NoStrict, Options, parse_options


def build(
    artifact: ArtifactPath,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the built artifact.  [default: ARTIFACT-built]")
    ] = None,
    option: Options = None,
    no_profile: NoProfile = False,
    no_strict: NoStrict = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Finish an artifact on its device, and prove it there.

    For artifacts with the status `needs device build`, such as an engine that only the device can make.
    This runs the build program that the artifact holds, in a child process: build only what you trust.
    """
    options = parse_options(option or ())

    from deploykit.cli.commands.compare import published
    from deploykit.pipeline.build import build as run_build

    return published(
        run_build(artifact, output=output, options=options or None, profile=not no_profile, strict=not no_strict)
    )
