"""The command line, `deploykit`. Typer and rich are imported when it runs, never by `import deploykit`."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None for those of this process.
    Returns:
        The exit code: 0, that of the error (`deploykit.contract.errors`), 130 on Ctrl-C, 141 where the reader of
        standard output went away.
    """
    from deploykit.cli.app import run

    return run(argv)


__all__ = ["main"]
