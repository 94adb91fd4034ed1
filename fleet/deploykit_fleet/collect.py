"""`deploykit store gc`: remove what the newest releases of a store do not need, and nothing that is being used.

Kept are the newest releases of each name with all that they refer to, and every cell that a running release relies on:
that stands in its lease, which it takes before it looks what is cached. Collecting holds a lease, too, and a release
waits for it. So either the collector sees the release, or the release sees what is left.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploykit.contract.errors import ArtifactError, DeploykitError, UsageError
from deploykit.contract.reading import read_bytes
from deploykit_calibration.table import SUFFIX
from deploykit_fleet import lease, outcome
from deploykit_fleet.outcome import Release
from deploykit_fleet.release import GC
from deploykit_fleet.store import Capture, Finished, Store, read_record

KEEP = 5
_PART = re.compile(r"\..+\.part")
_HASH = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_HEX = 64
_YOUNG_S = 3600.0
_PREFIX = 32  # characters of a model's fingerprint that begin the name of a table; see `deploykit_calibration.cache`


@dataclass(frozen=True)
class Collected:
    """What a collection removed and kept.

    Attributes:
        releases, cells, objects: how many were removed.
        bytes: that they had.
        kept: releases that are left.
    """

    releases: int
    cells: int
    objects: int
    bytes: int
    kept: int


def gc(folder: str | Path, keep: int = KEEP) -> Collected:
    """Keep the newest releases of a store, and remove what only older ones need.

    Args:
        folder: of the store.
        keep: how many releases of each name.
    Raises:
        UsageError: `keep` is below 1.
        ArtifactError: the folder is no store, or another collection is at work.
    """
    if keep < 1:
        raise UsageError(f"keep is {keep}", hint="1 or more; to remove everything, remove the folder")
    store = Store(Path(folder))
    if not store.objects.is_dir() or not store.cells.is_dir():
        raise ArtifactError(f"{folder} is no store of deploykit", hint="pass the folder that release.toml calls store")
    lease.sweep(store.work)
    with lease.held(store.work, GC) as own:
        others = [kind for path, kind in lease.living(store.work) if path != own]
        if any(other.kind == GC for other in others):
            raise ArtifactError(f"another collection is at work in {folder}", hint="try again when it has ended")
        return _collected(store, keep, {key for other in others for key in other.keys})


def _collected(store: Store, keep: int, used: set[str]) -> Collected:
    kept, old, spared = _sorted_out(store, keep)
    newest = [outcome.read(store.root)] if (store.root / outcome.FILE_NAME).is_file() else []
    roots = [cell for release in (*kept, *newest) for cell in release.cells]
    keys = used | spared | {cell.key for cell in roots}
    fingerprints = spared | {cell.fingerprint for cell in roots} | {_fingerprint(store, key) for key in used}
    cells = [path for path in sorted(store.cells.glob("*.json")) if path.stem not in keys]
    objects = [path for path in sorted(store.objects.iterdir()) if path.name not in fingerprints]
    said = [path for path in sorted(store.boards.glob("*.json")) if path.name[:_HEX] not in fingerprints]
    objects, said = ([path for path in paths if not _is_young(path, bool(used))] for paths in (objects, said))
    captures = spared | {cell.capture for cell in roots if cell.capture}
    statistics = [] if used else [*_of_other_models(store, captures)]
    total = 0
    for path in (
        *old,
        *cells,
        *said,
        *objects,
        *statistics,
        *_left_overs(store),
    ):  # what points at something goes before that
        total += _size(path)
        store.discard(path)
    return Collected(len(old), len(cells), len(objects), total, len(kept))


def _sorted_out(store: Store, keep: int) -> tuple[list[Release], list[Path], set[str]]:
    """Releases to keep, folders of those to remove, and every hash in those that cannot be read here."""
    by_name: dict[str, list[tuple[str, Path, Release]]] = defaultdict(list)
    kept: list[Release] = []
    old: list[Path] = []
    spared: set[str] = set()
    for path in sorted(store.releases.iterdir()):
        if _ID.fullmatch(path.name) and not (path / outcome.FILE_NAME).exists() and not _is_young(path, True):
            old.append(path)  # a run that was killed while it wrote it
            continue
        try:
            found = outcome.read(path)
        except ArtifactError:  # not ours, or of a newer deploykit: it stays, with all that it may refer to
            spared |= _hashes(path / outcome.FILE_NAME)
            continue
        by_name[found.name].append((path.name, path, found))
    for runs in by_name.values():
        runs.sort(reverse=True)
        kept += [found for _, _, found in runs[:keep]]
        old += [path for _, path, _ in runs[keep:]]
    return kept, old, spared


def _hashes(path: Path) -> set[str]:
    try:
        return {found.decode() for found in _HASH.findall(read_bytes(path, limit=outcome.MAX_BYTES))}
    except DeploykitError:
        return set()


def _fingerprint(store: Store, key: str) -> str:
    found = read_record(store.cells / f"{key}.json", Finished)
    return "" if found is None else found.cell.fingerprint


def _of_other_models(store: Store, captures: set[str]) -> Iterator[Path]:
    """Statistics and captures of models that no kept cell was made of; the name of a table begins with its model's."""
    prefixes = tuple(each[:_PREFIX] for each in captures)
    for path in sorted(store.calibration.glob(f"*{SUFFIX}")):
        if not path.name.startswith(prefixes):
            yield path
    for path in sorted(store.captures.glob("*.json")):
        found = read_record(path, Capture)
        if found is None or found.fingerprint not in captures:
            yield path


def _is_young(path: Path, busy: bool) -> bool:
    """While a release is at work, an object may be there whose cell is about to be recorded."""
    try:
        return busy and time.time() - path.stat().st_ctime < _YOUNG_S
    except OSError:
        return True


def _left_overs(store: Store) -> Iterator[Path]:
    """Temporary files of writers that were killed long ago."""
    for folder in (store.root, store.cells, store.captures, store.boards, store.calibration):
        if folder.is_dir():
            for path in folder.iterdir():
                if _PART.fullmatch(path.name) and path.is_file() and not _is_young(path, True):
                    yield path


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        return path.stat().st_size
    except (OSError, DeploykitError):
        return 0
