"""Places: where a session runs. Here, in a child process, under emulation of another CPU, on a board over ssh or adb.

    with deploykit.load("out/model").open(place=Ssh("pi@board")) as session:
        session.run({"x": array})

What is named here is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.places.adb import Adb
    from deploykit.places.place import Child, Here, Place
    from deploykit.places.qemu import Qemu
    from deploykit.places.ssh import Ssh

_HOME = {"Adb": "adb", "Child": "place", "Here": "place", "Place": "place", "Qemu": "qemu", "Ssh": "ssh"}

__all__ = ["Adb", "Child", "Here", "Place", "Qemu", "Ssh"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deploykit.places' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deploykit.places.{_HOME[name]}"), name)
