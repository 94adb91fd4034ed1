"""What a search by latency chose, and what the others reached: values of the record `choice.json`.

`target="device:fastest"` chooses between toolchains, `precision="auto"` between precisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploykit.artifact.manifest import CHOICE_NAME
from deploykit.contract.errors import ArtifactError
from deploykit.contract.precision import Evidence
from deploykit.contract.reading import read_json
from deploykit.judge.profiling import Percentiles


@dataclass(frozen=True)
class Candidate:
    """What one toolchain, or one precision, made of the model.

    Attributes:
        target: such as `x86-cpu:openvino`; where precisions were compared, the precision, such as `int8`.
        status: `verified`, `failed`; `refused` or `not installed` where there is no artifact.
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


def read_choice(folder: Path) -> Choice | None:
    """The record beside an artifact that was chosen; None where it was not, or where the record is damaged."""
    path = folder / CHOICE_NAME
    if not path.is_file():
        return None
    try:
        return read_json(path, Choice)
    except ArtifactError:
        return None
