"""`deploykit lint`: would a toolchain read this model file, and keep its quantization as it is meant?

Nothing is run and no device is needed. That a file passes does not mean that it computes what was meant: `verify` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer, note
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
    file, maker = _file_of(Path(model))
    chosen = _chosen(toolchains or _own_rules(maker))
    reports = {target.name: target.lint(file) for target in chosen}
    broken = any(errors_of(findings) for findings in reports.values())
    if maker and maker not in reports:
        note(_foreign(maker, list(reports)))
    document = {
        "path": model,
        "file": str(file),
        "made_for": maker,
        "passed": not broken,
        "toolchains": [_record(name, findings) for name, findings in reports.items()],
    }
    page = [part for name, findings in reports.items() for part in _page(name, file, findings)]
    return Answer(document, page, ConversionError.exit_code if broken else 0)


def _own_rules(maker: str | None) -> list[str]:
    """The toolchain that an artifact was made for, where it has rules."""
    from deploykit.plugin.registry import toolchain

    return [maker] if maker is not None and toolchain(maker).has_lint else []


def _foreign(maker: str, judged: Sequence[str]) -> str:
    return (
        f"this artifact is for {maker}, and is judged by the rules of {', '.join(judged)}, which will not read it as it"
        f" is: export the model with --target {judged[0]} for a file of its own"
    )


def _file_of(path: Path) -> tuple[Path, str | None]:
    """The file to look at, and the toolchain that it was made for, where it is an artifact's.

    Raises:
        UsageError: the path is neither a file nor an artifact with one.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}", hint="give an ONNX file, or the folder of an artifact")
    if not path.is_dir():
        return path, None
    from deploykit.plugin.artifact import load

    found = load(path)
    files = [entry.path for entry in found.manifest.files if entry.path.endswith(_MODEL)]
    if not files:
        message = f"{path} is for {found.manifest.toolchain}, and holds no {_MODEL} file to check"
        raise UsageError(message, hint=f"deploykit inspect {path} lists its files")
    entry = found.manifest.entry if found.manifest.entry in files else files[0]
    return path / entry, found.manifest.toolchain


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
