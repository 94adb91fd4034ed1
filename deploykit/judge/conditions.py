"""Under what conditions a profile was measured: temperature, clock and throttling.

A source that a machine does not have is named in `absent`; none is ever a zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """One sensor over the time of a measurement.

    Attributes:
        name: as the system calls it.
        first, last, minimum, maximum: degrees Celsius, or MHz.
    """

    name: str
    first: float
    last: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Conditions:
    """What a machine told while it was measured.

    Attributes:
        temperature_c: the temperature c of each thermal zone.
        clock_mhz: the clock mhz of each core.
        most_mhz: the highest clock of each core, where it is told.
        throttled: what shows that the machine slowed itself down; empty where nothing does, or nothing tells of it.
        absent: what the machine does not tell of: `temperature`, `clock`, `throttling`.
        samples: how often it was looked.
    """

    temperature_c: tuple[Reading, ...] = ()
    clock_mhz: tuple[Reading, ...] = ()
    most_mhz: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    samples: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """Name and text of each, for people."""
        found = []
        if self.temperature_c:
            hottest = max(self.temperature_c, key=lambda one: one.maximum)
            found.append(("temperature", f"{hottest.first:.0f} to {hottest.last:.0f} C ({hottest.name}, the hottest)"))
        if self.clock_mhz:
            low, high = (f(one.minimum for one in self.clock_mhz) for f in (min, max))
            most = f" of {max(self.most_mhz.values()):.0f}" if self.most_mhz else ""
            found.append(("clock", f"{low:.0f} to {high:.0f}{most} MHz"))
        if "throttling" not in self.absent:
            found.append(("throttled", "; ".join(self.throttled) or "no sign of it"))
        if self.absent:
            found.append(("not told", ", ".join(self.absent)))
        return found
