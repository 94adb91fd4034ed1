"""What a search by latency chose, and what the others reached: values of the record `choice.json`.

`target="device:fastest"` chooses between toolchains, `precision="auto"` between precisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploykit.artifact.manifest import CHOICE_NAME
from deploykit.contract.errors import ArtifactError
from deploykit.contract.precision import Evidence
from deploykit.contract.printable import aligned
from deploykit.contract.reading import read_json
from deploykit.judge import figures
from deploykit.judge.profiling import Percentiles


@dataclass(frozen=True)
class Candidate:
    """What one toolchain, or one precision, made of the model.

    Attributes:
        target: such as `x86-cpu:openvino`; where precisions were compared, the precision, such as `int8`.
        status: `verified`, `failed`; `refused`, `crashed` or `not installed` where there is no artifact.
        sqnr_db: the SQNR of its parity; None without an artifact.
        size_bytes: the size of its payload.
        latency_ms: percentiles, measured in turns with the other candidates that pass, or estimated; None where it
            does not pass.
        reason: why it was refused or failed, or what installs it; "" where it passes.
        relative_cost: multiply-accumulates, each times the bytes of its type, where the device is not here and its
            table has no rates to estimate a latency from; no time. None elsewhere.
    """

    target: str
    status: str
    sqnr_db: float | None = None
    size_bytes: int | None = None
    latency_ms: Percentiles | None = None
    reason: str = ""
    relative_cost: float | None = None


@dataclass(frozen=True)
class Choice:
    """Which was the fastest, and what the others reached; fastest first.

    Attributes:
        winner: `target` of the candidate.
        threads: the number of threads of the runtimes that were measured; 0 in an estimate.
        evidence: the evidence level of latencies or relative costs: `device`, or `estimate` where the device is not
            here.
    """

    winner: str
    threads: int
    candidates: tuple[Candidate, ...]
    evidence: Evidence = Evidence.DEVICE

    @property
    def title(self) -> str:
        """How they were compared."""
        if self.threads:
            return f"Measured in turns on {self.threads} thread(s)"
        return f"By {self.evidence}: the device is not here"

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads, and a row of texts for each candidate, fastest first."""
        rows = [
            [
                row.target,
                row.status,
                figures.milliseconds(row.latency_ms.p50 if row.latency_ms else None),
                figures.decibel(row.sqnr_db),
                figures.size(row.size_bytes),
                row.reason,
            ]
            for row in self.candidates
        ]
        heads = ["tried", "status", "p50", "SQNR", "size", "why not"]
        if any(row.relative_cost is not None for row in self.candidates):
            heads[2] = "MACs x bytes"
            for cells, row in zip(rows, self.candidates, strict=True):
                cells[2] = figures.plain(row.relative_cost)
        return heads, rows

    def __str__(self) -> str:
        heads, rows = self.table
        return f"{self.winner}. {self.title}\n{aligned([heads, *rows])}"


def read_choice(folder: Path) -> Choice | None:
    """The record beside an artifact that was chosen; None where it was not, or where the record is damaged."""
    path = folder / CHOICE_NAME
    if not path.is_file():
        return None
    try:
        return read_json(path, Choice)
    except ArtifactError:
        return None
