"""What is said of one figure of one entry, before and now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploykit_fleet.report.significance import Shift

Verdict = Literal["worse", "better", "same", "untested", "elsewhere", "machine"]
WORSE: Verdict = "worse"
BETTER: Verdict = "better"
SAME: Verdict = "same"
UNTESTED: Verdict = "untested"
ELSEWHERE: Verdict = "elsewhere"
MACHINE: Verdict = "machine"


@dataclass(frozen=True)
class Change:
    """One figure of one entry, before and now.

    Attributes:
        entry: its name.
        what: `state`, `latency`, `size`, `SQNR`, `metric`, `placement` or `profile`.
        old, new: as people read them.
        verdict: `worse` is a finding; `machine` where the float build that was measured beside it slowed as well.
        why: what the verdict rests on.
        shift: of a latency; None of others.
        p_value: corrected; None where nothing was tested.
        better: which way it went, where it was tested.
    """

    entry: str
    what: str
    old: str
    new: str
    verdict: Verdict
    why: str = ""
    shift: Shift | None = None
    p_value: float | None = None
    better: bool = False


@dataclass(frozen=True)
class Comparison:
    """Two books beside each other.

    Attributes:
        old: title of the older one.
        changes: of entries that are in both, in their order.
        added, gone: names of entries that are in one alone.
    """

    old: str
    changes: tuple[Change, ...]
    added: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Change, ...]:
        """What got worse."""
        return tuple(change for change in self.changes if change.verdict == WORSE)


def percent(share: float) -> str:
    """A change as people read it."""
    return f"{100.0 * share:+.1f} %"
