"""What a report is of: entries, each a model on a target in a precision, read from a folder.

A folder is a release (`release.json`), one artifact (`manifest.json`), or one that artifacts lie in. Payloads are
neither opened nor hashed: a report says what manifests and profiles say, on any machine, without a runtime. An artifact
that cannot be read is an entry that failed, with the reason; only a folder in which there is nothing is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import manifest as layout
from deploykit.artifact.manifest import Manifest
from deploykit.artifact.store import StoredArtifact
from deploykit.contract.errors import ArtifactError, DeploykitError
from deploykit.contract.reading import MAX_JSON_BYTES, convert, read_bytes
from deploykit.judge.profiling import Profile
from deploykit_fleet import outcome
from deploykit_fleet.outcome import FAILED, PASSED, SKIPPED, Cell, DeviceRun, Gate, Status

if TYPE_CHECKING:
    from deploykit.judge.parity import ParityReport

PENDING = "built on its device later"
_DEEPEST = 2  # folders below the one that is named in which artifacts are looked for


@dataclass(frozen=True)
class Entry:
    """One model on one target in one precision.

    Attributes:
        name: unique in its report, and the same in the next one: `model/target/precision`, or the folder's path.
        model, target, precision: as they were asked for.
        state: `passed`, `failed` or `skipped`.
        reason, hint: why it is not `passed`, and what to do next; "" where there is nothing to say.
        gates: what was asked and what was reached; empty where no release asked.
        remarks: of what could not be read, or does not fit.
        manifest: of its artifact; None where there is none.
        profile: of its artifact, on its board where there is one; None where nothing was measured.
        fingerprint: sha256 of the manifest; "" where there is none.
        board: what its board said of it; None where none was asked.
        identity: of the model, which others of the same figures share: its name in a release, else its fingerprint.
    """

    name: str
    model: str
    target: str
    precision: str
    state: Status
    reason: str = ""
    hint: str = ""
    gates: tuple[Gate, ...] = ()
    remarks: tuple[str, ...] = ()
    manifest: Manifest | None = None
    profile: Profile | None = None
    fingerprint: str = ""
    identity: str = ""
    board: DeviceRun | None = None

    @property
    def parity(self) -> ParityReport | None:
        """Of its artifact."""
        return self.manifest.parity if self.manifest else None

    @property
    def size_bytes(self) -> int | None:
        """Of the payload, golden data excluded."""
        if self.manifest is None:
            return None
        return sum(file.size for file in self.manifest.files if file.path != layout.GOLDEN_NAME)


@dataclass(frozen=True)
class Book:
    """Everything that one report shows of one folder.

    Attributes:
        title: of the page.
        path: the folder.
        entries: in the order of the release file, or by name.
        facts: name -> value, of the whole: when, where, by which version.
    """

    title: str
    path: Path
    entries: tuple[Entry, ...]
    facts: tuple[tuple[str, str], ...] = ()
    is_artifact: bool = False


def read_book(where: str | Path) -> Book:
    """Read what a folder holds.

    Raises:
        ArtifactError: there is nothing to report in it, or it is one artifact, or a release, that is damaged.
    """
    folder = Path(where)
    if (folder / outcome.FILE_NAME).is_file() or folder.name == outcome.FILE_NAME:
        return _of_release(folder)
    if (folder / layout.MANIFEST_NAME).is_file():
        entry = read_artifact(folder, folder.resolve().name)
        return Book(entry.name, folder, (entry,), is_artifact=True)
    found = [_tolerant(path, path.relative_to(folder).as_posix()) for path in _artifacts_in(folder)]
    if not found:
        lacks = "it holds no artifact and no release" if folder.exists() else "there is no such folder"
        hint = "pass an exported artifact, a folder of artifacts, or what `deploykit release` wrote"
        raise ArtifactError(f"{folder} cannot be reported: {lacks}", hint=hint)
    return Book(folder.resolve().name, folder, tuple(found))


def read_artifact(folder: Path, name: str) -> Entry:
    """The entry of one artifact.

    Raises:
        ArtifactError: its manifest is damaged, a link, or of a newer deploykit.
    """
    path = folder / layout.MANIFEST_NAME
    data = read_bytes(path, limit=MAX_JSON_BYTES)
    manifest = Manifest.from_json(data)
    profile, remarks = _profile_of(StoredArtifact(folder, manifest))
    failed = manifest.status == layout.FAILED
    missed = "; ".join(manifest.parity.failures) if manifest.parity else ""
    return Entry(
        name,
        manifest.recipe.model.name if manifest.recipe else folder.resolve().name,
        manifest.target,
        manifest.precision.value,
        FAILED if failed else PASSED,
        reason=(missed or "it missed a placement or performance gate") if failed else _pending(manifest),
        hint=manifest.build.command_for(folder) if manifest.build else "",
        remarks=remarks,
        manifest=manifest,
        profile=profile,
        fingerprint=hashlib.sha256(data).hexdigest(),
        identity=manifest.fingerprints.get("model", name),
    )


def _pending(manifest: Manifest) -> str:
    return f"{PENDING}: {manifest.build.reason}" if manifest.build else ""


def _profile_of(artifact: StoredArtifact) -> tuple[Profile | None, tuple[str, ...]]:
    """A profile that is damaged, or of another artifact, costs its figures and not the report."""
    try:
        return artifact.profile, ()
    except DeploykitError as error:
        return None, (error.message,)


def _tolerant(folder: Path, name: str) -> Entry:
    try:
        return read_artifact(folder, name)
    except DeploykitError as error:
        return Entry(name, name, "", "", FAILED, reason=error.message, hint=error.hint or "", identity=name)


def _artifacts_in(folder: Path, depth: int = _DEEPEST) -> Iterator[Path]:
    """Artifacts below a folder, by name; what is hidden (staging folders) and what is linked is left out."""
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in below:
        if path.is_symlink():
            continue
        if (path / layout.MANIFEST_NAME).is_file():
            yield path
        elif depth > 1:
            yield from _artifacts_in(path, depth - 1)


# -- releases ---------------------------------------------------------------------------------------------------


def _of_release(where: Path) -> Book:
    release = outcome.read(where)
    folder = where if where.is_dir() else where.parent
    facts = (
        ("made", release.started),
        ("on", f"{release.host}, {release.cpu}"),
        ("deploykit", release.deploykit),
        ("engine", release.engine),
    )
    return Book(release.name, folder, tuple(_of_cell(cell, folder) for cell in release.cells), facts)


def _of_cell(cell: Cell, folder: Path) -> Entry:
    """A cell, with its artifact where that is still there and still the one that was judged."""
    entry = Entry(
        cell.name,
        cell.model,
        cell.target,
        cell.precision,
        cell.status,
        gates=cell.gates,
        identity=cell.model,
        board=cell.device,
    )
    failure = cell.failure or (cell.device.failure if cell.device else None)
    if cell.status == SKIPPED:
        return replace(entry, reason=cell.reason)
    if failure is not None:
        entry = replace(entry, reason=failure.message, hint=failure.hint or "")
    path = outcome.artifact_path(cell, folder)
    if path is None:
        return entry
    found = _tolerant(path, cell.name)
    if found.manifest is None:
        return replace(entry, remarks=(found.reason,))
    other = cell.fingerprint and found.fingerprint != cell.fingerprint
    remarks = (*found.remarks, *(("the artifact is another one than the release judged",) if other else ()))
    entry = replace(
        entry,
        reason=entry.reason or found.reason,
        hint=entry.hint or found.hint,
        remarks=remarks,
        manifest=found.manifest,
        profile=found.profile,
        fingerprint=found.fingerprint,
    )
    return _on_board(entry, cell)


def _on_board(entry: Entry, cell: Cell) -> Entry:
    """What the cell's board measured is shown in place of what the exporting machine did."""
    if cell.device is None or cell.device.profile is None:
        return entry
    try:
        profile = convert(cell.device.profile, Profile, what=f"the profile of {cell.device.device}")
    except DeploykitError as error:
        return replace(entry, remarks=(*entry.remarks, error.message))
    return replace(entry, profile=profile)
