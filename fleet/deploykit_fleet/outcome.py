"""`Release`: what came of a release, as one file, `DIR/release.json`, that reports and the next release read.

Values only: no framework, no toolchain and no engine is imported here, so that a report can be made on any machine.
The artifacts keep what they keep (manifest, parity, layers, `profile.json`, recipe); a cell says where its artifact
lies, what was asked of it and what it reached. A cell that made no artifact says why, and what to do next.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from deploykit.artifact.storage import write_file
from deploykit.contract.errors import ArtifactError
from deploykit.contract.reading import decode_json, read_bytes

FORMAT = 1
"""Of the layout below. Fields may be added to a format; a reader ignores those that it does not know."""
FILE_NAME = "release.json"
JUNIT_NAME = "junit.xml"
MAX_BYTES, _MAX_VALUES = 128 << 20, 4_000_000
"""Of a release: as many cells as a release file may have, each with the profile that a board measured."""

Status = Literal["passed", "failed", "skipped"]
PASSED: Status = "passed"
FAILED: Status = "failed"
SKIPPED: Status = "skipped"


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """One gate of a cell.

    Attributes:
        name: as in the release file, such as `max_drop`, `min_placement`, `min_sqnr_db`; gates that nobody asked for
            and a precision has by itself are here, too.
        asked: the bound, in the gate's own unit.
        value: what was reached; None where it was not measured.
        passed: whether the gate was met.
    """

    name: str
    asked: float
    value: float | None = None
    passed: bool = True


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """The task metric (higher is better).

    Attributes:
        value, reference: of the artifact and of the float model.
        interval: 95 % interval of `reference - value`; None where the metric is one number and not one a sample.
        samples: that the interval is of; None where there is none.
    """

    value: float | None
    reference: float | None
    interval: tuple[float, float] | None = None
    samples: int | None = None


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer to blame: module path (or node name), and its SQNR in dB in the simulated graph."""

    name: str
    sqnr_db: float | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a cell failed.

    Attributes:
        kind: class of the error, such as `ParityError`; `Crashed` where the process that made it died.
        message, hint: of the error.
        exit_code: of its class; see `deploykit.contract.errors`.
        layers: to blame, worst first; empty where none is.
    """

    kind: str
    message: str
    hint: str | None = None
    exit_code: int = 1
    layers: tuple[Layer, ...] = ()


class DeviceRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a board said of an artifact.

    Attributes:
        device: name in the list of `deploykit device`.
        evidence: `device`, or less where it was none, such as `emulator`.
        verified: whether the golden inputs gave the golden outputs there.
        sqnr_db: of these outputs, in dB.
        profile: a `deploykit.Profile` as plain data (`msgspec.to_builtins`); None where it was not measured.
        failure: why not, where it is not verified.
        seconds: that it took.
    """

    device: str
    evidence: str = "device"
    verified: bool = False
    sqnr_db: float | None = None
    profile: dict[str, Any] | None = None
    failure: Failure | None = None
    seconds: float = 0.0


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one target in one precision.

    Attributes:
        model, target, precision: names as in the release file.
        key: sha256 of everything that decides the artifact; the same key is never computed twice.
        status: `passed`, `failed`, or `skipped` where the file allows it.
        artifact: folder relative to the folder of the file, with forward slashes; None where there is none. A cell
            that failed a gate has its candidate here.
        fingerprint: of the artifact (sha256 of its manifest); "" where there is none.
        failure: why it failed; None where it did not.
        reason: why it was skipped; "" where it was not.
        gates: asked, and what was reached.
        metric: the task metric; None where none was asked for.
        seconds: of the wall that it took when it was computed.
        device: what its board said; None where no board was asked for.
        cached: whether an earlier run had computed it.
        capture: fingerprint of the captured graph with its weights; "" where nothing was captured.
    """

    model: str
    target: str
    precision: str
    key: str
    status: Status
    artifact: str | None = None
    fingerprint: str = ""
    failure: Failure | None = None
    reason: str = ""
    gates: tuple[Gate, ...] = ()
    metric: Metric | None = None
    seconds: float = 0.0
    device: DeviceRun | None = None
    cached: bool = False
    capture: str = ""

    @property
    def name(self) -> str:
        """`model/target/precision`, which is unique in a release."""
        return f"{self.model}/{self.target}/{self.precision}"


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A release: its cells in the order of the release file, and where and when they were made.

    Attributes:
        deploykit: version that wrote it.
        name: of the release file, without its suffix.
        started: UTC, ISO 8601 with a `Z`.
        seconds: of the wall that the run took.
        host: name of the machine that planned it.
        cpu: what its CPU calls itself.
        engine: `sequential`, `pool`, `ray`, or `none` where nothing was left to do.
        cells: every cell of the file.
        format: of the layout; a newer one is refused.
    """

    deploykit: str
    name: str
    started: str
    host: str
    cpu: str
    cells: tuple[Cell, ...]
    engine: str = "none"
    seconds: float = 0.0
    format: int = FORMAT

    @property
    def exit_code(self) -> int:
        """0, or that of the first cell that failed."""
        return next((_code(cell) for cell in self.cells if cell.status == FAILED), 0)

    def cell(self, name: str) -> Cell | None:
        """The cell of that name, `model/target/precision`; None where the release has none."""
        return next((cell for cell in self.cells if cell.name == name), None)


def _code(cell: Cell) -> int:
    if cell.failure is not None:
        return cell.failure.exit_code
    return cell.device.failure.exit_code if cell.device and cell.device.failure else 1


def write(release: Release, folder: Path) -> Path:
    """Write `folder/release.json`; a reader or a crash sees the old or the new one, never a part.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    path = folder / FILE_NAME
    write_file(path, msgspec.json.format(msgspec.json.encode(release), indent=1) + b"\n")
    return path


def read(where: str | Path) -> Release:
    """Read a release.

    Args:
        where: its folder, or the file itself.
    Raises:
        ArtifactError: there is none, it is damaged, of a newer format, or names an artifact outside a relative path.
    """
    path = Path(where)
    path = path / FILE_NAME if path.is_dir() else path
    hint = "pass the folder that `deploykit release` wrote, or run it again"
    if not path.is_file():
        raise ArtifactError(f"there is no release at {where}: it has no {FILE_NAME}", hint=hint)
    data = read_bytes(path, limit=MAX_BYTES)
    head = decode_json(data, _Head, what=path.name, verdict="is damaged", hint=hint, values=_MAX_VALUES)
    if not 1 <= head.format <= FORMAT:
        message = f"{path} has format {head.format}; this deploykit reads formats up to {FORMAT}"
        raise ArtifactError(message, hint="pip install --upgrade deploykit")
    release = decode_json(data, Release, what=path.name, verdict="is damaged", hint=hint, values=_MAX_VALUES)
    for cell in release.cells:
        if cell.artifact is not None:
            _check_relative(cell.artifact, path)
    return release


def artifact_path(cell: Cell, folder: Path) -> Path | None:
    """Where the artifact of a cell lies, `folder` being that of the release; None where it has none."""
    return None if cell.artifact is None else folder / cell.artifact


class _Head(msgspec.Struct):
    format: int


def _check_relative(text: str, path: Path) -> None:
    """A release of somebody else must not make its reader open what lies anywhere on the disk."""
    parts = PurePosixPath(text).parts
    climbs = [part for part in parts if part == ".."]
    if not text or text.startswith("/") or "\\" in text or ":" in text or len(climbs) > _CLIMBS:
        raise ArtifactError(f"{path.name} names an unsafe path {text!r}; it is refused", hint="run the release again")


_CLIMBS = 2
"""`releases/ID/release.json` lies two folders below its store."""
