"""`Payload`: what a lowering wrote, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.achieved import Achieved
from deploykit.contract.requirements import Requirements


@dataclass(frozen=True, eq=False)
class Payload:
    """What a lowering wrote, and what is known of it.

    Attributes:
        entry: payload file, relative to the folder, that the runtime opens.
        achieved: counted in the produced file.
        tool_versions: distributions that took part, by name.
        build: what is left to do on the device; None where the artifact runs as it is.
        log: what the converter printed, kept beside the artifact and never shown on success.
        requirements: what the payload needs of a machine; None for what `Target.requirements` says.
        traffic: what layers move, by name; see `deploykit.artifact.manifest.Facts`.
        golden_min_sqnr_db: SQNR in dB from which golden outputs count as reproduced on the device; None for the gate
            of the precision.
        notes: what must be said beside the figures.
        metadata: facts that only this toolchain reads (JSON values).
    """

    entry: str
    achieved: Achieved
    tool_versions: dict[str, str]
    build: PendingBuild | None = None
    log: str = ""
    requirements: Requirements | None = None
    traffic: Mapping[str, Sequence[int]] = field(default_factory=dict)
    golden_min_sqnr_db: float | None = None
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
