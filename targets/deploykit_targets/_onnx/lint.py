"""Lint: does an ONNX file follow the explicit-quantization rules of the toolchain that will read it?

    findings = lint("model.onnx", load_rules("tensorrt"))

Works on any ONNX file, whoever wrote it, and runs nothing: it reads the graph and its constants. The rules are data
(`lint_rules/*.toml`: opsets, operators from the parser's published table, types, what each broken rule costs); how a
rule is checked is in `lint_checks.py`, one function each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploykit.errors import UsageError

if TYPE_CHECKING:
    import onnx

Severity = Literal["error", "warning"]
_FOLDER = Path(__file__).parent / "lint_rules"


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    Attributes:
        rule: its name, as in `lint_rules/*.toml`.
        node: name of the node, or of its first output where it has none; "" for the whole model.
        op_type: the node's operator; "" for the whole model.
        message: what is wrong and what would be right.
        severity: `error` where the runtime refuses the file or computes something else, `warning` where it is slower.
    """

    rule: str
    node: str
    op_type: str
    message: str
    severity: Severity

    def __str__(self) -> str:
        where = f"{self.op_type} {self.node}: " if self.node else ""
        return f"{self.severity} [{self.rule}] {where}{self.message}"


@dataclass(frozen=True)
class LintRules:
    """The rules of one toolchain.

    Attributes:
        name: of the toolchain.
        source: where the operator table comes from, with its commit.
        min_opset, max_opset: of the standard operator set, inclusive.
        quantized_types: ONNX element types that q/dq may use.
        element_types_refused: ONNX element types that no tensor may have.
        supported, unsupported: operators of the published table; one that is in neither is reported as unknown.
        severities: rule -> what breaking it costs; a rule that is absent is off.
    """

    name: str
    source: str
    min_opset: int
    max_opset: int
    quantized_types: frozenset[str]
    element_types_refused: frozenset[str]
    supported: frozenset[str]
    unsupported: frozenset[str]
    severities: Mapping[str, Severity]


@cache
def load_rules(name: str) -> LintRules:
    """Read the rules of a toolchain.

    Raises:
        UsageError: there are none of that name; the message lists those there are.
    """
    path = _FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
        raise UsageError(f"no lint rules are called {name!r}", hint=f"there are {known}")
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return LintRules(
        name=table["name"],
        source=table["source"],
        min_opset=table["min_opset"],
        max_opset=table["max_opset"],
        quantized_types=frozenset(table["quantized_types"]),
        element_types_refused=frozenset(table["element_types_refused"]),
        supported=frozenset(table["operators"]["supported"].split()),
        unsupported=frozenset(table["operators"]["unsupported"].split()),
        severities=table["rules"],
    )


def lint(model: onnx.ModelProto | str | Path, rules: LintRules) -> tuple[Finding, ...]:
    """Check a model against rules.

    Args:
        model: a loaded model, or the path of an ONNX file; external data is read where the file names it.
        rules: from `load_rules`.
    Returns:
        The findings, errors first, then in the order of the graph; empty where every rule holds.
    Raises:
        UsageError: the file cannot be read as ONNX.
    """
    from deploykit_targets._onnx.lint_checks import CHECKS
    from deploykit_targets._onnx.lint_view import GraphView

    view = GraphView(_loaded(model))
    findings = [
        Finding(rule, node, op_type, message, rules.severities[rule])
        for rule, check in CHECKS.items()
        if rule in rules.severities
        for node, op_type, message in check(view, rules)
    ]
    return tuple(sorted(findings, key=lambda finding: (finding.severity, view.position(finding.node))))


def errors_of(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that make a file unusable."""
    return tuple(finding for finding in findings if finding.severity == "error")


def _loaded(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    if not isinstance(model, str | Path):
        return model
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    try:
        return onnx.load(str(model))
    except (OSError, DecodeError, ValueError) as error:
        raise UsageError(f"{model} cannot be read as an ONNX model: {error}") from error
