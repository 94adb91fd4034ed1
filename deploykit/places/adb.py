"""`Adb`: an Android device over the user's own `adb`, through the same scripts and the same protocol as any board.

Android has no Python for us: artifacts that bring a program of their own run there (those of TVM), and others where
the user names a Python. Files lie under `/data/local/tmp`, the one folder that `adb shell` may execute from.
"""

from __future__ import annotations

import re

from deploykit.contract.errors import UsageError
from deploykit.contract.optional import SystemTool
from deploykit.places.board import Board
from deploykit.places.line import Line

ADB = SystemTool("adb", "adb", "copy to and start programs on an Android device")
PREFIX = "adb:"

_HOME = "/data/local/tmp"
_SERIAL = re.compile(r"(?!-)[A-Za-z0-9_.:\[\]%-]*")
_OWN = ("error: ", "adb: ", "* daemon", "- waiting for device")


class AdbLine(Line):
    """What `adb -s SERIAL shell` reaches.

    Args:
        serial: as `adb devices` lists it; "" where one device is attached.
    Raises:
        UsageError: it is not a serial.
    """

    def __init__(self, serial: str = "") -> None:
        if not _SERIAL.fullmatch(serial):
            raise UsageError(f"{serial!r} is not a serial that adb takes", hint="adb devices lists them")
        super().__init__(f"{PREFIX}{serial}", ADB, home=_HOME)
        self._chosen = ["-s", serial] if serial else []

    @property
    def hint(self) -> str:
        """See `Line.hint`."""
        return f"try: {' '.join(['adb', *self._chosen, 'shell', 'true'])}"

    def words(self) -> list[str]:
        """See `Line.words`; without a terminal there, which would change bytes on their way."""
        return [ADB.find(), *self._chosen, "shell", "-T"]

    def is_lost(self, code: int, said: str) -> bool:
        """See `Line.is_lost`: adb itself ends with 1, or with 255 where the device goes away."""
        return code == 255 or (code == 1 and said.startswith(_OWN))


class Adb(Board):
    """An Android device.

    Args:
        serial: as `adb devices` lists it; "" where one device is attached.
        python: a Python there that has deploykit, where there is one.

    Raises:
        UsageError: it is not a serial, or not the name of a program.
    """

    def __init__(self, serial: str = "", *, python: str | None = None) -> None:
        super().__init__(AdbLine(serial), python=python)
        self.serial = serial
