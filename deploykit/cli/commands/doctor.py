"""`deploykit doctor`: what is installed, what is missing and how to get it, and what is broken.

Missing packages and programs are facts, not faults: the exit code is 0 unless something that is registered is broken.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit._version import __version__
from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json
from deploykit.contract.errors import DeploykitError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.contract.optional import Requirement
    from deploykit.plugin.target import Target


@dataclass(frozen=True)
class Package:
    """A package of an extra; `version` is None where it is not installed, and `note` says what is there instead."""

    name: str
    version: str | None
    note: str = ""


@dataclass(frozen=True)
class Extra:
    """The packages of one extra, and the command that installs them."""

    toolchain: str
    purpose: str
    packages: tuple[Package, ...]
    complete: bool
    command: str


@dataclass(frozen=True)
class Tool:
    """A program of the system that a toolchain starts."""

    toolchain: str
    command: str
    installed: bool
    purpose: str
    install: str


@dataclass(frozen=True)
class Problem:
    """Something registered that does not work."""

    what: str
    message: str
    hint: str | None


def doctor(json: Json = False, debug: Debug = False) -> Answer:
    """Check this installation.

    Python, host, packages of every toolchain, programs, and what is broken.
    """
    from deploykit.contract.host import this_host

    working, problems = _plugins()
    extras = [extra for target in working.values() for extra in _extras(target)]
    tools = [tool for target in working.values() for tool in _tools(target)]
    host = this_host()
    facts = {
        "deploykit": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
    }
    document = {**facts, "host": host, "extras": extras, "tools": tools, "problems": problems, "ok": not problems}
    page = list(_page({**facts, "host": str(host)}, extras, tools, problems))
    return Answer(document, page, exit_code=1 if problems else 0)


def _plugins() -> tuple[Mapping[str, Target], list[Problem]]:
    from deploykit.plugin import registry

    try:
        working, broken = registry.toolchains(), registry.broken_toolchains()
    except DeploykitError as error:  # two distributions register one name
        return {}, [Problem("toolchains", error.message, error.hint)]
    return working, [Problem(f"toolchain {name}", error.message, error.hint) for name, error in broken.items()]


def _extras(target: Target) -> Iterable[Extra]:
    from deploykit.plugin import registry

    own = target.capabilities()
    for purpose, requires, extra in (
        ("export", own.export_requires, own.export_extra),
        ("run", own.runtime_requires, own.runtime_extra),
        *([("compile", own.compile_requires, own.compile_extra)] if own.compile_extra else []),
    ):
        packages = tuple(
            Package(requirement.project, _version(requirement), _note(requirement)) for requirement in requires
        )
        complete = all(requirement.installed for requirement in requires)
        yield Extra(target.name, purpose, packages, complete, registry.command_for(requires, extra, own.distribution))


def _version(requirement: Requirement) -> str | None:
    return (requirement.version or "unknown version") if requirement.installed else None


def _note(requirement: Requirement) -> str:
    if not requirement.is_placeholder:
        return ""
    found = " ".join(filter(None, (requirement.project, requirement.version)))
    return f"what is installed as {found} is an empty placeholder without {requirement.api}: pip uninstall it"


def _tools(target: Target) -> Iterable[Tool]:
    for tool in target.capabilities().system_tools:
        yield Tool(target.name, tool.command, tool.installed, tool.purpose, tool.install_command)


def _page(
    facts: Mapping[str, str], extras: list[Extra], tools: list[Tool], problems: list[Problem]
) -> Iterable[RenderableType]:
    from deploykit.cli.tables import grid, pairs

    yield pairs("", facts.items())
    if extras:
        rows = [
            [one.toolchain, one.purpose, _package_list(one.packages), "" if one.complete else one.command]
            for one in extras
        ]
        yield grid("Toolchains", ["toolchain", "to", "packages", "missing: install with"], rows)
    if tools:
        programs = [
            [
                one.toolchain,
                one.command,
                "yes" if one.installed else "no",
                one.purpose,
                "" if one.installed else one.install,
            ]
            for one in tools
        ]
        yield grid("Programs", ["toolchain", "program", "installed", "needed to", "missing: install with"], programs)
    for problem in problems:
        yield f"broken: {problem.what}: {problem.message}" + (f"\n  -> {problem.hint}" if problem.hint else "")
    if not problems:
        yield "nothing that is registered is broken"


def _package_list(packages: Iterable[Package]) -> str:
    return ", ".join(_package(one) for one in packages) or "none needed"


def _package(one: Package) -> str:
    return f"{one.name} {one.version or 'MISSING'}" + (f" ({one.note})" if one.note else "")
