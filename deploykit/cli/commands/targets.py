"""`deploykit targets`: every target that can be named, what is installed, and the command for what is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json

if TYPE_CHECKING:
    from rich.table import Table

    from deploykit.contract.errors import DeploykitError
    from deploykit.plugin.registry import TargetInfo


def targets(json: Json = False, debug: Debug = False) -> Answer:
    """List the targets and what is installed.

    For what is not installed, the pip command is shown.
    """
    from deploykit.plugin import registry

    infos, broken = registry.targets(), registry.broken_toolchains()
    document = {
        "targets": list(infos),
        "broken": [{"toolchain": name, "message": error.message, "hint": error.hint} for name, error in broken.items()],
    }
    here, elsewhere = ([info for info in infos if info.can_export is can] for can in (True, False))
    page: list[Any] = [] if infos else ["no targets are registered"]
    page += [_table("Can be exported here", here)] if here else []
    page += [_table("Cannot be exported here", elsewhere)] if elsewhere else []
    page += [line for error in broken.values() for line in _broken_lines(error)]
    return Answer(document, page)


def _table(title: str, infos: Sequence[TargetInfo]) -> Table:
    from deploykit.cli.tables import grid

    headers = ["target", "toolchain", "precisions", "installed"]
    complete = not any(map(install, infos))
    rows = [
        [
            info.name,
            info.toolchain,
            " ".join(map(str, info.precisions)),
            installed(info),
            *([] if complete else [install(info)]),
        ]
        for info in infos
    ]
    return grid(title, headers if complete else [*headers, "what is missing"], rows)


def installed(info: TargetInfo) -> str:
    """What can be done here in words."""
    can = {"export": info.can_export, "compile": info.can_export and info.can_compile, "run": info.can_run}
    return ", ".join(what for what, possible in can.items() if possible) or "no"


def install(info: TargetInfo) -> str:
    """The command that installs what is missing, or what no command installs."""
    if not info.can_export:
        return info.unavailable or info.export_command
    return "" if info.can_run else info.run_command


def _broken_lines(error: DeploykitError) -> list[str]:
    return [f"broken: {error.message}", *([f"  -> {error.hint}"] if error.hint else [])]
