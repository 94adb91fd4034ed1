"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deploykit.errors import UsageError

# Both are acted on in `app.run`, which must know them even where the parsing of the rest fails.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

ArtifactPath = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder of an exported artifact.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime; all usable cores if not given.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the toolchain; repeatable.")
]
NoProfile = Annotated[bool, typer.Option("--no-profile", help="Measure no speed.")]
NoStrict = Annotated[
    bool, typer.Option("--no-strict", help="Keep an artifact that misses a gate, marked failed, and exit with 0.")
]


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
