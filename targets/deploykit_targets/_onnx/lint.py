"""Lint: does an ONNX file follow the explicit-quantization rules of the toolchain that will read it?

    findings = lint("model.onnx", load_rules("tensorrt"))

Works on any ONNX file, whoever wrote it, and runs nothing: it reads the graph and its constants. The rules are data
(`lint_rules/*.toml`: opsets, operators from the parser's published table, types, what each broken rule costs); how a
rule is checked is in `lint_checks.py` and `lint_limits.py`, one function each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import UsageError
from deploykit.contract.findings import Finding, Severity, errors_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Finding", "LintRules", "errors_of", "lint", "load_rules"]

_FOLDER = Path(__file__).parent / "lint_rules"


@dataclass(frozen=True)
class LintRules:
    """The rules of one toolchain.

    Attributes:
        name: the name of the toolchain.
        source: where the operator table comes from, with its commit.
        min_opset, max_opset: the versions of the standard operator set that are taken, inclusive.
        quantized_types: ONNX element types that q/dq may use.
        element_types_refused: ONNX element types that no tensor may have.
        supported, unsupported: operators of the published table; one that is in neither is reported as unknown.
        severities: rule -> what breaking it costs; a rule that is absent is off.
        provenance: rule -> who said so: a compiler with its version, a page, or we.
        max_rank: axes of a tensor; 0 is no limit.
        max_window: elements that windows of pools and convolutions stay below; 0 is no limit.
        attributes: operator -> attribute -> the values that it may have.
        constant_operands: operator -> positions of inputs that must be constant.
        single_output: operators that have their first output alone.
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
    provenance: Mapping[str, str] = field(default_factory=dict)
    max_rank: int = 0
    max_window: int = 0
    attributes: Mapping[str, Mapping[str, Sequence[object]]] = field(default_factory=dict)
    constant_operands: Mapping[str, Sequence[int]] = field(default_factory=dict)
    single_output: frozenset[str] = frozenset()


@cache
def load_rules(name: str) -> LintRules:
    """Read the rules of a toolchain.

    Raises:
        UsageError: there are none of that name; the message lists those there are.
    """
    known = {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}
    if name not in known:
        raise UsageError(f"no lint rules are called {name!r}", hint=f"there are {', '.join(known)}")
    table = _read(known[name])
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
        provenance=table["provenance"],
        max_rank=table.get("max_rank", 0),
        max_window=table.get("max_window", 0),
        attributes=table.get("attributes", {}),
        constant_operands=table.get("constant_operands", {}),
        single_output=frozenset(table.get("single_output", "").split()),
    )


def _read(path: Path) -> dict[str, Any]:
    """A table of rules, over the one that it extends, where it does; tables in it are joined."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    base = table.pop("extends", None)
    if base is None:
        return table
    below = _read(path.with_name(f"{base}.toml"))
    joined = {key: {**below[key], **found} for key, found in table.items() if isinstance(found, dict) and key in below}
    return {**below, **table, **joined}


def lint(model: onnx.ModelProto | str | Path, rules: LintRules) -> tuple[Finding, ...]:
    """Check a model against rules.

    Args:
        model: a loaded model, or the path of an ONNX file; external data is read where the file names it.
        rules: from `load_rules`.
    Returns:
        The findings, errors first, then in the order of the graph, those of inner graphs behind the node that holds
        them; empty where every rule holds.
    Raises:
        UsageError: the file cannot be read as ONNX, or its external data is missing, not loaded or outside its folder.
    """
    from deploykit_targets._onnx.lint_checks import CHECKS
    from deploykit_targets._onnx.onnx_view import OnnxView

    whole = OnnxView(_loaded(model))
    findings = [
        Finding(rule, node, op_type, message, rules.severities[rule])
        for view in whole.views()
        for rule, check in CHECKS.items()
        if rule in rules.severities
        for node, op_type, message in check(view, rules)
    ]
    return tuple(sorted(findings, key=lambda finding: (finding.severity, whole.position(finding.node))))


def _loaded(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    if not isinstance(model, str | Path):
        return model
    import onnx

    try:
        found = onnx.load(str(model))
    except Exception as error:  # every format that onnx reads by suffix, and external data, raises types of its own
        raise UsageError(f"{model} cannot be read as an ONNX model: {error}") from error
    if not found.HasField("graph"):
        raise UsageError(f"{model} cannot be read as an ONNX model: there is no graph in it")
    return found
