"""`deploykit lint`: would a toolchain read this model file, and keep its quantization as it is meant?

Nothing is run and no device is needed. That a file passes does not mean that it computes what was meant: `verify` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json
from deploykit.contract.errors import ConversionError, UsageError
from deploykit.contract.findings import Finding, errors_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.plugin.target import Target

_MODEL = ".onnx"


def lint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="ONNX file, or folder of an artifact that has one.")],
    toolchains: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="TOOLCHAIN",
            help="Whose rules; repeatable. By default an artifact's own, or all that there are.",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Check a model file against the rules of the toolchains that will read it.

    Exits with 4, as an export would, where one of them has an error; with 0 where there are only warnings.
    """
    file, own = _file_of(Path(model))
    reports = {target.name: target.lint(file) for target in _chosen(toolchains or own)}
    broken = any(errors_of(findings) for findings in reports.values())
    document = {
        "path": model,
        "file": str(file),
        "passed": not broken,
        "toolchains": [_record(name, findings) for name, findings in reports.items()],
    }
    page = [part for name, findings in reports.items() for part in _page(name, file, findings)]
    return Answer(document, page, ConversionError.exit_code if broken else 0)


def _file_of(path: Path) -> tuple[Path, list[str]]:
    """The file to look at, and whose rules it follows by itself.

    Raises:
        UsageError: the path is neither a file nor an artifact with one.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}", hint="give an ONNX file, or the folder of an artifact")
    if not path.is_dir():
        return path, []
    from deploykit.plugin.artifact import load
    from deploykit.plugin.registry import toolchain

    found = load(path)
    files = [entry.path for entry in found.manifest.files if entry.path.endswith(_MODEL)]
    if not files:
        raise UsageError(f"{path} holds no {_MODEL} file to check", hint=f"deploykit inspect {path} lists its files")
    entry = found.manifest.entry if found.manifest.entry in files else files[0]
    own = found.manifest.toolchain
    return path / entry, [own] if toolchain(own).has_lint else []


def _chosen(names: Sequence[str]) -> list[Target]:
    """The toolchains of those names; without names all that have a lint.

    Raises:
        UnknownTargetError: there is none of that name.
    """
    from deploykit.plugin.registry import toolchain, toolchains

    if names:
        return [toolchain(name) for name in dict.fromkeys(names)]
    return [target for target in toolchains().values() if target.has_lint]


def _record(name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    errors = len(errors_of(findings))
    return {"toolchain": name, "errors": errors, "warnings": len(findings) - errors, "findings": findings}


def _page(name: str, file: Path, findings: Sequence[Finding]) -> Sequence[RenderableType]:
    errors = len(errors_of(findings))
    counted = f"{errors} error(s), {len(findings) - errors} warning(s)" if findings else "no findings"
    return [f"{name}: {file}: {counted}", *(f"  {finding}" for finding in findings)]
