"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

# Both are acted on in `app.run`, which must know them even where the parsing of the rest fails.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

ArtifactPath = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder of an exported artifact.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime; all usable cores if not given.")
]
