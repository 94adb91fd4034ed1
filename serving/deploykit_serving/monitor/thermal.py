"""Temperatures and throttling through sysfs: thermal zones, hwmon, counters, clocks, a Raspberry Pi's flags."""

from __future__ import annotations

from pathlib import Path

from deploykit_serving.monitor.reading import Absent, Found, Reading, Unreadable, children, number_of, text_of

_CPUS = "sys/devices/system/cpu"
_PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
# Bits of the Raspberry Pi's firmware: what holds now; the same shifted by 16 has held since it was started.
_PI_FLAGS = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}


class ThermalSource:
    """The sensors of this machine.

    Args:
        root: folder that holds `sys`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Found:
        """Degrees by sensor, and what tells of throttling."""
        readings: list[Reading] = []
        absent: list[Absent] = []
        self._read_temperatures(readings, absent)
        self._read_counters(readings, absent)
        self._read_clocks(readings, absent)
        self._read_pi(readings, absent)
        return tuple(readings), tuple(absent)

    def _read_temperatures(self, readings: list[Reading], absent: list[Absent]) -> None:
        before = len(readings)
        for zone in children(self._root / "sys/class/thermal", "thermal_zone*"):
            self._add(readings, absent, zone / "temp", zone / "type", zone.name)
        for monitor in children(self._root / "sys/class/hwmon", "hwmon*"):
            for value in children(monitor, "temp*_input"):
                label = value.with_name(value.name.replace("_input", "_label"))
                self._add(readings, absent, value, label if label.exists() else monitor / "name", monitor.name)
        if len(readings) == before and not absent:
            absent.append(Absent("temperature", f"{self._root}: neither thermal zones nor hwmon in sysfs"))

    @staticmethod
    def _add(readings: list[Reading], absent: list[Absent], value: Path, name: Path, prefix: str) -> None:
        try:
            celsius = number_of(value) / 1000  # the kernel tells thousandths
            of = f"{prefix} {text_of(name)}"
            readings.append(Reading("temperature_celsius", of, celsius, str(value), help="Temperature"))
        except Unreadable as error:  # zones of parts that are switched off answer so
            absent.append(Absent("temperature", str(error)))

    def _read_counters(self, readings: list[Reading], absent: list[Absent]) -> None:
        """How often each core was throttled for its heat since the start of the machine (Intel)."""
        found = [path / "thermal_throttle/core_throttle_count" for path in children(self._root / _CPUS, "cpu[0-9]*")]
        found = [path for path in found if path.exists()]
        if not found:
            absent.append(Absent("throttle counters", f"{self._root / _CPUS} has no thermal_throttle"))
        for path in found:
            try:
                of, value = path.parent.parent.name, number_of(path)
                help_text = "Times that a core was slowed for its heat since the machine was started"
                readings.append(Reading("thermal_throttles", of, value, str(path), counts=True, help=help_text))
            except Unreadable as error:
                absent.append(Absent("throttle counters", str(error)))

    def _read_clocks(self, readings: list[Reading], absent: list[Absent]) -> None:
        policies = children(self._root / _CPUS / "cpufreq", "policy*")
        if not policies:
            absent.append(Absent("clocks", f"{self._root / _CPUS / 'cpufreq'} has no policy"))
        for policy in policies:
            for metric, name, help_text in (
                ("clock_hertz", "scaling_cur_freq", "Clock now"),
                ("clock_limit_hertz", "scaling_max_freq", "Highest clock that is allowed now"),
            ):
                try:
                    value = number_of(policy / name) * 1000  # the kernel tells kilohertz
                    readings.append(Reading(metric, policy.name, value, str(policy / name), help=help_text))
                except Unreadable as error:
                    absent.append(Absent("clocks", str(error)))

    def _read_pi(self, readings: list[Reading], absent: list[Absent]) -> None:
        path = self._root / _PI
        if not path.exists():
            return  # no Raspberry Pi: nothing is missing
        try:
            flags = int(text_of(path), 16)
        except (Unreadable, ValueError) as error:
            absent.append(Absent("raspberry pi throttling", str(error)))
            return
        for bit, name in _PI_FLAGS.items():
            help_text = "1 where clocks are held back now, by reason"
            readings.append(Reading("throttled", name, float(bool(flags >> bit & 1)), str(path), help=help_text))
            since = "1 where clocks were held back since the start, by reason"
            was = float(bool(flags >> (bit + 16) & 1))
            readings.append(Reading("throttled_since_start", name, was, str(path), help=since))
