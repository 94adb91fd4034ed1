"""`LayerRow`: what is known of each layer of one entry, joined by the name of its node in the captured graph."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.judge.profiling import Profile
from deploykit_fleet.report.entries import Entry


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: module path, or the node's name where it has none.
        op: kind of operator.
        precision: what it computes in, as counted in the file; "" where that is not counted.
        sqnr_db: of its output in the simulated graph; None where it was not compared.
        microseconds: median; None where the runtime does not tell.
        reason: why it is not in the precision that was asked for; "" where it is.
    """

    name: str
    op: str
    precision: str
    sqnr_db: float | None = None
    microseconds: float | None = None
    reason: str = ""


def layers_of(entry: Entry) -> tuple[LayerRow, ...]:
    """Every layer in the order of execution: those that were counted, then those that were only compared."""
    if entry.manifest is None:
        return ()
    spent = _spent(entry.profile)
    noise = {each.name: each for each in entry.parity.layers} if entry.parity else {}
    rows = []
    for layer in entry.manifest.achieved.layers:
        heard = noise.pop(layer.name, None)
        rows.append(
            LayerRow(
                layer.module_path or layer.name,
                layer.op,
                layer.precision,
                heard.sqnr_db if heard else None,
                spent.get(layer.name),
                layer.reason,
            )
        )
    rest = (LayerRow(each.module_path or each.name, each.op, "", each.sqnr_db) for each in noise.values())
    return (*rows, *rest)


def _spent(profile: Profile | None) -> dict[str, float]:
    """Microseconds by node; a node that the runtime runs in parts has the sum of these."""
    found: dict[str, float] = {}
    for each in profile.op_times if profile else ():
        found[each.name] = found.get(each.name, 0.0) + each.median_us
    return found


def time_by_kind(profile: Profile | None) -> dict[str, float]:
    """Microseconds by kind of operator, most first; empty where the runtime does not tell."""
    found: dict[str, float] = {}
    for each in profile.op_times if profile else ():
        found[each.op] = found.get(each.op, 0.0) + each.median_us
    return dict(sorted(found.items(), key=lambda item: -item[1]))
