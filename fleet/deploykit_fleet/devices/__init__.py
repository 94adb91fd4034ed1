"""Devices: boards that are known by a name, leased for a moment, and asked to verify, profile, build and run artifacts.

    jetson = deploykit.device("jetson-lab")
    jetson.verify("out/model")

What is named here is loaded at first use; nothing of it imports a framework, here or on the board.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit_fleet.devices.client import Device, device
    from deploykit_fleet.devices.registry import Entry, Registry

_HOME = {"Device": "client", "device": "client", "Entry": "registry", "Registry": "registry"}

__all__ = ["Device", "Entry", "Registry", "device"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deploykit_fleet.devices' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deploykit_fleet.devices.{_HOME[name]}"), name)
