"""Energy of x86 processors through the kernel's powercap (RAPL): counters in microjoules that wrap around."""

from __future__ import annotations

from pathlib import Path

from deploykit_serving.monitor.reading import Absent, Found, Reading, Unreadable, children, number_of, text_of

_FOLDER = "sys/class/powercap"
_NAME = "rapl"


class RaplSource:
    """The packages of this machine, and what they tell of their parts.

    A counter starts over at `max_energy_range_uj`, after minutes under load; it is followed over that, once between two
    reads at most.

    Args:
        root: folder that holds `sys`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._folder = root / _FOLDER
        self._last: dict[Path, int] = {}
        self._turned: dict[Path, int] = {}

    def read(self) -> Found:
        """Joules so far by domain, such as `package-0`, and `package-0/core` of a part of it."""
        # `intel-rapl-mmio` tells of the same package once more, and is left out
        domains = [path for path in children(self._folder, "intel-rapl:*") if path.is_dir()]
        if not domains:
            return (), (Absent(_NAME, f"{self._folder} has no intel-rapl domain"),)
        readings: list[Reading] = []
        absent: list[Absent] = []
        for path in domains:
            try:
                joules = self._microjoules(path) / 1e6
                source = str(path / "energy_uj")
                readings.append(
                    Reading("energy_joules", self._name(path), joules, source, counts=True, help="Energy so far")
                )
            except Unreadable as error:
                absent.append(Absent(f"{_NAME} {path.name}", str(error)))
        return tuple(readings), tuple(absent)

    def _microjoules(self, path: Path) -> int:
        now = number_of(path / "energy_uj")
        if now < self._last.get(path, 0):
            self._turned[path] = self._turned.get(path, 0) + number_of(path / "max_energy_range_uj")
        self._last[path] = now
        return now + self._turned.get(path, 0)

    def _name(self, path: Path) -> str:
        """`package-0`, or `package-0/core` of a part."""
        own = text_of(path / "name")
        parent = path.with_name(path.name.rpartition(":")[0])
        return f"{text_of(parent / 'name')}/{own}" if parent.name.count(":") else own
