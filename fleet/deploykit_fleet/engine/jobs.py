"""What a process that computes cells is told, as plain values: they travel to other machines."""

from __future__ import annotations

from pathlib import Path

import msgspec

from deploykit_fleet.release_file import Block, Model

EXPORT, PROFILE = "export", "profile"
CURRENT = "current"
CAPTURE = "capture"
RESULTS = "results"


class CellJob(msgspec.Struct, frozen=True, kw_only=True):
    """One cell to compute; fields as in `deploykit_fleet.planner.PlannedCell`.

    Attributes:
        baseline: fingerprint of the float build that a profile is measured beside; "" for none.
    """

    key: str
    target: str
    precision: str
    block: Block
    needs_data: bool = False
    baseline: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Cells of one model, to be computed one after another by one process.

    Attributes:
        kind: `export` or `profile`.
        name: of the model.
        model: as the release file has it.
        folder: that the process works in.
        folders: that modules of the user are looked for in.
        store: folder of the store.
        work: folder of this job in the work folder of the release: `current` says what is being computed,
            `results/KEY.json` what came of it.
        capture: key of the capture; see `deploykit_fleet.keys.ModelKeys`.
        contents: of what the model is made of, as it was planned; see `deploykit_fleet.keys.ModelKeys`.
        isa: instruction sets of the machine that planned; another machine must have the same.
        threads: of PyTorch and of libraries.
        cells: in the order of the file.
    """

    kind: str
    name: str
    model: Model
    folder: str
    folders: tuple[str, ...]
    store: str
    work: str
    capture: str
    contents: dict[str, str]
    isa: tuple[str, ...]
    threads: int
    cells: tuple[CellJob, ...]

    @property
    def results(self) -> Path:
        """Where results appear."""
        return Path(self.work) / RESULTS
