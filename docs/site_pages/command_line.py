"""The command line, as it describes itself."""

from __future__ import annotations

import contextlib
import io
import os


def pages() -> dict[str, str]:
    """The help of the program and of each command."""
    from deploykit.cli.app import app

    names = sorted({str(command.name) for command in app.registered_commands})
    parts = [
        "# Command line\n",
        "Completion for your shell, targets and precisions included: `deploykit --install-completion`.\n",
    ]
    for words in ([], *([name] for name in names)):
        title = " ".join(["deploykit", *words])
        parts.append(f"## {title}\n\n```text\n{_help(words)}\n```\n")
    return {"reference/cli.md": "\n".join(parts)}


def _help(words: list[str]) -> str:
    from deploykit.cli import main

    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([*words, "--help"])
    return printed.getvalue().strip("\n")
