"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import note
from deploykit.contract.errors import UsageError

if TYPE_CHECKING:
    from deploykit.plugin.artifact import Artifact

# Both are acted on in `app.run`, which must know them even where the parsing of the rest fails.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

ArtifactPath = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder of an exported artifact.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime; all usable cores if not given.")
]
Board = Annotated[
    str | None,
    typer.Option(
        "--board",
        metavar="ADDRESS",
        help="Run on this machine, as for ssh (user@host): copies the artifact there and executes it.",
    ),
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the toolchain; repeatable.")
]
NoProfile = Annotated[bool, typer.Option("--no-profile", help="Measure no speed.")]
NoStrict = Annotated[
    bool, typer.Option("--no-strict", help="Keep an artifact that misses a gate, marked failed, and exit with 0.")
]


def load_on(path: str, board: str | None) -> Artifact:
    """Load an artifact, to be run here or on the board that the user named."""
    from deploykit.plugin.artifact import load

    found = load(path)
    if board is None:
        return found
    note(f"this copies a program to {board} over SSH and executes it there")
    return found.on_board(board)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` strings as a mapping. The toolchain gives the strings their types; lists and tables are JSON."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not separator or not key:
            raise UsageError(f"--option {pair!r} is not of the form key=value", hint="--option opset=18")
        if key in found:
            raise UsageError(f"--option {key} is given twice")
        found[key] = _value_of(key, value.strip())
    return found


def _value_of(key: str, text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--option {key}: {text!r} is not valid JSON: {error}") from error
