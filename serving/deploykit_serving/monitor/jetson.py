"""NVIDIA Jetson through sysfs: use of the GPU, and power of the rails that its INA3221 sensors measure."""

from __future__ import annotations

from pathlib import Path

from deploykit_serving.monitor.reading import Absent, Found, Reading, Unreadable, children, number_of, text_of

_NAME = "jetson"
# JetPack 4 (Nano, TX2, Xavier), 5 and 6 (Orin): the GPU's name moved between device trees.
_LOADS = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/17000000.ga10b/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
)
_SENSORS = "sys/bus/i2c/drivers/ina3221"


class JetsonSource:
    """The board that this process runs on.

    Args:
        root: folder that holds `sys` and `proc`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Found:
        """Share of time that the GPU works, and watts of each rail."""
        try:
            board = text_of(self._root / "proc/device-tree/model").rstrip("\0")
        except Unreadable:
            board = ""
        if "jetson" not in board.lower() and not (self._root / "etc/nv_tegra_release").exists():
            return (), (Absent(_NAME, "this machine is no Jetson"),)
        readings: list[Reading] = []
        absent: list[Absent] = []
        self._read_load(readings, absent)
        self._read_rails(readings, absent)
        return tuple(readings), tuple(absent)

    def _read_load(self, readings: list[Reading], absent: list[Absent]) -> None:
        found = [self._root / path for path in _LOADS if (self._root / path).exists()]
        if not found:
            absent.append(Absent(f"{_NAME} gpu", f"none of {', '.join(_LOADS)} is there"))
            return
        try:
            share = number_of(found[0]) / 1000  # the kernel tells tenths of a percent
            readings.append(Reading("gpu_use_ratio", "gpu0", share, str(found[0]), help="Share of time with work"))
        except Unreadable as error:
            absent.append(Absent(f"{_NAME} gpu", str(error)))

    def _read_rails(self, readings: list[Reading], absent: list[Absent]) -> None:
        monitors = children(self._root / _SENSORS, "*/hwmon/hwmon*")
        if not monitors:
            absent.append(Absent(f"{_NAME} power", f"{self._root / _SENSORS} has no hwmon"))
        for folder in monitors:
            for label in children(folder, "in*_label"):
                self._read_rail(folder, label, readings, absent)

    @staticmethod
    def _read_rail(folder: Path, label: Path, readings: list[Reading], absent: list[Absent]) -> None:
        number = label.name.removeprefix("in").removesuffix("_label")
        current, voltage = folder / f"curr{number}_input", folder / f"in{number}_input"
        if not current.exists():  # the sensor's sums of channels have a label and no current
            return
        try:
            watts = number_of(voltage) * number_of(current) / 1e6  # millivolts, milliamperes
            readings.append(Reading("power_watts", text_of(label), watts, str(current), help="Power now"))
        except Unreadable as error:
            absent.append(Absent(f"{_NAME} power", str(error)))
