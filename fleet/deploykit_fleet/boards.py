"""What boards say of a release's artifacts: verified and profiled there, one after another, after the exports.

What a board confirmed is remembered by artifact, board and its address, and not asked again. What it did not confirm,
or could not be asked, is tried again by the next run.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.contract.errors import DeploykitError
from deploykit_fleet.keys import digest
from deploykit_fleet.outcome import FAILED, PASSED, SKIPPED, Cell, DeviceRun
from deploykit_fleet.verdict import failure_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit_fleet.release_file import Block
    from deploykit_fleet.store import Store


_ABSENT = {"LostError": "device", "BusyError": "device", "MissingDependencyError": "missing"}
"""Errors that say nothing of the artifact, and what allows them; what a board refuses is never skipped."""
_log = logging.getLogger("deploykit")


def confirmed(
    cell: Cell, block: Block, store: Store, *, profile: bool, find: Callable[[str], Any] | None = None
) -> Cell:
    """A cell with what its board said; the cell itself where none was asked for, or there is nothing to confirm.

    Args:
        block: names the board, and says whether it may be absent.
        profile: measure there, too.
        find: gives a board by its name, with `verify` and `profile`; None for `deploykit.device`.
    """
    if not block.device or cell.status != PASSED or not cell.fingerprint:
        return cell
    where = digest(["board", block.device, _address(block.device), profile])
    key = f"{cell.fingerprint}-{where}"
    before = store.board(key)
    run = before or _asked(block.device, cell, store, profile, find or _device)
    if run.failure is None:
        if before is None:
            store.record_board(key, run)
        return msgspec.structs.replace(cell, device=run)
    absent = _ABSENT.get(run.failure.kind) in block.allow_skip
    reason = f"{block.device}: {run.failure.message}" if absent else ""
    return msgspec.structs.replace(cell, status=SKIPPED if absent else FAILED, reason=reason, device=run)


def _device(name: str) -> Any:
    import deploykit

    return deploykit.device(name)


def _address(name: str) -> str:
    """Where the board of that name is; another one that takes its name has confirmed nothing."""
    from deploykit_fleet.devices.registry import Registry

    try:
        return Registry().get(name).address
    except DeploykitError:
        return ""


def _asked(name: str, cell: Cell, store: Store, profile: bool, find: Callable[[str], Any]) -> DeviceRun:
    from deploykit.plugin.artifact import load

    began = time.perf_counter()
    run = DeviceRun(device=name)
    try:
        artifact, board = load(store.object(cell.fingerprint)), find(name)
        metrics = board.verify(artifact)
        run = msgspec.structs.replace(run, verified=True, sqnr_db=metrics.sqnr_db)
        if profile:
            measured = board.profile(artifact)
            evidence = str(measured.evidence)
            run = msgspec.structs.replace(run, profile=msgspec.to_builtins(measured), evidence=evidence)
    except DeploykitError as error:
        run = msgspec.structs.replace(run, failure=failure_of(error))
    except Exception as error:  # one board shall not take the other cells with it
        _log.exception("%s: %s", name, cell.name)
        hint = f"deploykit device run {name} {store.object(cell.fingerprint)}"
        run = msgspec.structs.replace(run, failure=msgspec.structs.replace(failure_of(error), hint=hint))
    return msgspec.structs.replace(run, seconds=round(time.perf_counter() - began, 3))
