"""What a user types for a board: an address that `ssh` takes, or `adb:` with the serial of an Android device."""

from __future__ import annotations

from deploykit.places.adb import PREFIX, Adb
from deploykit.places.board import Board
from deploykit.places.ssh import Ssh


def board_at(address: str, *, python: str | None = None) -> Board:
    """The board at an address; nothing is contacted.

    Args:
        address: `user@host`, a host of the user's ssh configuration, `ssh://user@host:port`, `adb:` or `adb:SERIAL`.
        python: the Python there that has deploykit, where it is none of those that are looked for.
    Raises:
        UsageError: it is no address; or `python` is not the name of a program.
    """
    if address.startswith(PREFIX):
        return Adb(address.removeprefix(PREFIX), python=python)
    return Ssh(address, python=python)
