"""`Finding`: one broken rule in a model file, as `Target.lint` gives it and `deploykit lint` shows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    Attributes:
        rule: its name, as the toolchain's table of rules has it.
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


def errors_of(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that make a file unusable."""
    return tuple(finding for finding in findings if finding.severity == "error")
