"""What changed between two releases, cell by cell, as far as their files tell; `deploykit report` weighs it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from deploykit_fleet.outcome import PASSED, Cell, Release


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What changed of one cell.

    Attributes:
        cell: `model/target/precision`.
        what: `added`, `removed`, `mended`, `broken`, `status`, `metric` or `artifact`.
        before, after: statuses, metrics, or the first characters of fingerprints; "" where there is none.
    """

    cell: str
    what: str
    before: str
    after: str


def changes(old: Release, new: Release) -> tuple[Change, ...]:
    """Every difference, in the order of the new release; what was removed comes last."""
    before = {cell.name: cell for cell in old.cells}
    found = [change for cell in new.cells for change in _of(before.pop(cell.name, None), cell)]
    gone = [Change(cell=cell.name, what="removed", before=cell.status, after="") for cell in before.values()]
    return (*found, *gone)


def _of(old: Cell | None, new: Cell) -> Iterator[Change]:
    if old is None:
        yield Change(cell=new.name, what="added", before="", after=new.status)
        return
    if old.status != new.status:
        what = "mended" if new.status == PASSED else "broken" if old.status == PASSED else "status"
        yield Change(cell=new.name, what=what, before=old.status, after=new.status)
    values = [cell.metric.value if cell.metric is not None else None for cell in (old, new)]
    if values[0] != values[1]:
        shown = ["" if value is None else f"{value:.6g}" for value in values]
        yield Change(cell=new.name, what="metric", before=shown[0], after=shown[1])
    if old.fingerprint != new.fingerprint:
        yield Change(cell=new.name, what="artifact", before=old.fingerprint[:12], after=new.fingerprint[:12])
