"""What boards say of a release's artifacts: verified and profiled there, one after another, after the exports.

What a board confirmed is remembered by artifact and board, and not asked again. What it did not confirm, or could not
be asked, is tried again by the next run.
"""

from __future__ import annotations

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
    key = digest(["board", block.device, cell.fingerprint, profile])
    before = store.board(key)
    run = before or _asked(block.device, cell, store, profile, find or _device)
    if run.failure is None:
        if before is None:
            store.record_board(key, run)
        return msgspec.structs.replace(cell, device=run)
    absent = run.failure.kind == "DeviceError" and "device" in block.allow_skip
    reason = f"{block.device}: {run.failure.message}" if absent else ""
    return msgspec.structs.replace(cell, status=SKIPPED if absent else FAILED, reason=reason, device=run)


def _device(name: str) -> Any:
    import deploykit

    return deploykit.device(name)


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
    return msgspec.structs.replace(run, seconds=round(time.perf_counter() - began, 3))
