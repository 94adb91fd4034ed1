"""`deploykit targets`: every target that can be named, what is installed, and the command for what is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json

if TYPE_CHECKING:
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
    page += _page("Can be exported here", here) if here else []
    page += _page("Cannot be exported here", elsewhere) if elsewhere else []
    page += [line for error in broken.values() for line in _broken_lines(error)]
    return Answer(document, page)


def _page(title: str, infos: Sequence[TargetInfo]) -> list[Any]:
    """A table with a row for all devices of a toolchain that are alike, and below it what is missing and how to get it.

    Eighty columns hold it; one row a device, or a column of commands, they would not.
    """
    from deploykit.cli.tables import grid

    alike: dict[tuple[Any, ...], list[TargetInfo]] = {}
    for info in infos:
        alike.setdefault((info.toolchain, info.precisions, installed(info), install(info)), []).append(info)
    headers = ["target", "toolchain", "precisions", "here"]
    rows = [
        [" ".join(info.name for info in group), toolchain, " ".join(map(str, precisions)), here]
        for (toolchain, precisions, here, _), group in alike.items()
    ]
    missing = {(toolchain, what): group for (toolchain, _, _, what), group in alike.items() if what}
    lines = [f"  {name}, {_lacking(group[0])}: {what}" for (name, what), group in missing.items()]
    return [grid(title, headers, rows), *lines]


def _lacking(info: TargetInfo) -> str:
    """What the command below the table is for."""
    if info.can_export:
        return "to build and run, on the device" if info.run_command.endswith('-build]"') else "to run"
    return "not here" if info.unavailable else "to export"


def installed(info: TargetInfo) -> str:
    """What can be done here in words."""
    here = not info.unavailable  # whatever is installed, a GPU that is not here runs nothing
    can = {"export": info.can_export, "compile": info.can_export and info.can_compile, "run": info.can_run and here}
    return ", ".join(what for what, possible in can.items() if possible) or "no"


def install(info: TargetInfo) -> str:
    """The command that installs what is missing, or what no command installs."""
    if not info.can_export:
        return info.unavailable.replace(info.device, "that machine") or info.export_command
    return "" if info.can_run else info.run_command


def _broken_lines(error: DeploykitError) -> list[str]:
    return [f"broken: {error.message}", *([f"  -> {error.hint}"] if error.hint else [])]
