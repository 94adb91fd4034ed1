"""`deploykit build`: finish on the device what could only be prepared elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import (
    AllowNative,
    ArtifactPath,
    Debug,
    Json,
    Key,
    NoProfile,
    NoStrict,
    Options,
    parse_options,
)


def build(
    artifact: ArtifactPath,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the built artifact.  [default: ARTIFACT-built]")
    ] = None,
    option: Options = None,
    no_profile: NoProfile = False,
    no_strict: NoStrict = False,
    key: Key = None,
    allow_native: AllowNative = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Finish an artifact on its device, and prove it there.

    For artifacts with the status `needs device build`, such as an engine that only the device can make.
    The build program that the artifact holds is run in a child process. One that is not that of this deploykit, of an
    artifact that was not exported here, runs only with --key or --allow-native.
    """
    options = parse_options(option or ())

    from deploykit.cli.commands.compare import published
    from deploykit.pipeline.build import build as run_build

    built = run_build(
        artifact,
        key=key,
        allow_native=allow_native,
        output=output,
        options=options or None,
        profile=not no_profile,
        strict=not no_strict,
    )
    return published(built)
