"""Devices are data: one `devices.toml` beside each toolchain plugin, read into frozen `Device` values.

A device says what its silicon has; it holds no code. Figures carry their source, because estimates are made of them.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.contract.errors import DeploykitError
from deploykit.contract.precision import Precision


@dataclass(frozen=True)
class Device:
    """One piece of hardware (or a generic class of it) as a toolchain serves it.

    Attributes:
        name: what a user types, such as `raspberry-pi-5`.
        toolchain: the plugin that this entry belongs to.
        summary: one line for listings.
        arch: instruction set architecture or GPU architecture (`x86-64`, `sm_87`, `gfx942`).
        precisions: what the silicon computes in; the toolchain may support more by emulation.
        default: whether `toolchain` is the one taken when only the device is named.
        generic: whether this is the device taken when only the toolchain is named.
        also: other words that people have for it (`rpi`, `gpu`), in lower case; they are offered, never taken for it.
        features: instruction sets or units that change the recipe (`avx512_vnni`, `dla`).
        peak_tops: operations per second by precision, in 1e12 (a multiply-accumulate is two).
        memory_gb_per_s: memory bandwidth in 1e9 bytes per second, or None.
        last_level_cache_mib: largest cache that all units share, in 2**20 bytes, or None where it is not known.
        source: where the figures come from.
        extra: fields that only this toolchain reads (compile flags, SDK versions).
    """

    name: str
    toolchain: str
    summary: str
    arch: str
    precisions: tuple[Precision, ...]
    default: bool = False
    generic: bool = False
    also: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    peak_tops: Mapping[str, float] = field(default_factory=dict)
    memory_gb_per_s: float | None = None
    last_level_cache_mib: float | None = None
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


_FIELDS = frozenset(Device.__dataclass_fields__) - {"name", "toolchain", "extra"}


def load_devices(path: Path, *, toolchain: str) -> dict[str, Device]:
    """Read a device table.

    Args:
        path: a TOML file with one table per device; keys that `Device` does not know go to `extra`.
        toolchain: name of the plugin that owns the file.
    Raises:
        DeploykitError: the file is malformed; the message names it. A defect of the plugin, not of the user.
    """
    try:
        return dict(_devices(path.read_text(encoding="utf-8"), toolchain))
    except (OSError, tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DeploykitError(f"device table {path.name} of toolchain {toolchain!r} is malformed: {error}") from error


@functools.cache
def _devices(text: str, toolchain: str) -> Mapping[str, Device]:
    """Kept: every load of an artifact asks what its target means, and a listing asks for every device."""
    return {name: _device(name, toolchain, table) for name, table in tomllib.loads(text).items()}


def _device(name: str, toolchain: str, table: Mapping[str, Any]) -> Device:
    known = {key: value for key, value in table.items() if key in _FIELDS}
    known["precisions"] = tuple(Precision(value) for value in table["precisions"])
    known |= {key: tuple(table.get(key, ())) for key in ("also", "features")}
    extra = {key: value for key, value in table.items() if key not in _FIELDS}
    return Device(name=name, toolchain=toolchain, extra=extra, **known)
