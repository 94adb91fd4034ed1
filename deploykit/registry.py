"""The registry of toolchains: entry points of the group `deploykit.targets`, and the devices that they serve.

Loading a plugin is cheap because a plugin imports nothing heavy. A plugin that cannot be loaded is listed with
its error, and does not take the others down.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deploykit.devices import Device
from deploykit.errors import DeploykitError, UnknownTargetError
from deploykit.precision import Precision
from deploykit.target import Target

GROUP = "deploykit.targets"


@dataclass(frozen=True)
class TargetInfo:
    """One line of `deploykit.targets()`.

    Attributes:
        name: what a user types: a device, or `device:toolchain` where another toolchain is the device's default.
        device, toolchain: the two halves.
        summary: one line.
        precisions: that both silicon and toolchain have.
        can_export, can_run: whether the packages are installed.
        export_command, run_command: pip commands that install them.
    """

    name: str
    device: str
    toolchain: str
    summary: str
    precisions: tuple[Precision, ...]
    can_export: bool
    can_run: bool
    export_command: str
    run_command: str


@dataclass(frozen=True)
class Resolved:
    """A target as typed, with the plugin and the device behind it."""

    typed: str
    target: Target
    device: Device


@functools.cache
def toolchains() -> Mapping[str, Target]:
    """All plugins by name, as a read-only view.

    Raises:
        DeploykitError: two distributions register the same name, or a plugin fails to load; the message names them.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise DeploykitError(
                f"toolchain {entry.name!r} is registered twice: by {_owner(other)} and by {_owner(entry)}",
                hint="uninstall one of them",
            )
    return MappingProxyType({name: _load(entry) for name, entry in sorted(found.items())})


def _owner(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name if entry.dist else 'an unknown distribution'} ({entry.value})"


def _load(entry: importlib.metadata.EntryPoint) -> Target:
    try:
        made = entry.load()()
    except Exception as error:  # a plugin is foreign code: whatever it raises is reported with its owner
        raise DeploykitError(
            f"toolchain {entry.name!r} of {_owner(entry)} cannot be loaded: {type(error).__name__}: {error}",
            hint="update or uninstall that distribution",
        ) from error
    if not isinstance(made, Target) or made.name != entry.name:
        raise DeploykitError(f"toolchain {entry.name!r} of {_owner(entry)} is not a deploykit Target of that name")
    return made


def toolchain(name: str) -> Target:
    """The plugin called `name`.

    Raises:
        UnknownTargetError: none is; the message lists those there are.
    """
    try:
        return toolchains()[name]
    except KeyError:
        raise UnknownTargetError(
            f"no toolchain {name!r} is installed; there are {', '.join(toolchains())}",
            hint="install the distribution that brings it",
        ) from None


def resolve(typed: str) -> Resolved:
    """Find plugin and device for `device`, `toolchain` or `device:toolchain`.

    Raises:
        UnknownTargetError: no such name; the message offers near ones.
    """
    name, _, chosen = typed.partition(":")
    if chosen:
        plugin = toolchain(chosen)
        devices = plugin.capabilities().devices
        if name not in devices:
            raise UnknownTargetError(f"toolchain {chosen!r} does not serve {name!r}; it serves {', '.join(devices)}")
        return Resolved(typed, plugin, devices[name])
    if name in toolchains():
        plugin = toolchains()[name]
        return Resolved(typed, plugin, _generic_device(plugin))
    serving = _serving(name)
    if not serving:
        raise UnknownTargetError(f"unknown target {typed!r}", hint=_suggestion(typed))
    best = next((pair for pair in serving if pair[1].default), serving[0])
    return Resolved(typed, *best)


def _serving(device: str) -> list[tuple[Target, Device]]:
    offers = ((plugin, plugin.capabilities().devices.get(device)) for plugin in toolchains().values())
    return [(plugin, found) for plugin, found in offers if found is not None]


def _generic_device(plugin: Target) -> Device:
    devices = plugin.capabilities().devices
    return next((device for device in devices.values() if device.generic), next(iter(devices.values())))


def _suggestion(typed: str) -> str:
    names = {info.name for info in targets()} | {info.toolchain for info in targets()}
    near = difflib.get_close_matches(typed, sorted(names), n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else "`deploykit targets` lists them all"


def targets() -> tuple[TargetInfo, ...]:
    """Every target that can be named, with what is installed and the command for what is not."""
    infos = [
        _info(plugin, device) for plugin in toolchains().values() for device in plugin.capabilities().devices.values()
    ]
    return tuple(sorted(infos, key=lambda info: (info.toolchain, info.name)))


def _info(plugin: Target, device: Device) -> TargetInfo:
    own = plugin.capabilities()
    is_default = resolve(device.name).target is plugin
    return TargetInfo(
        name=device.name if is_default else f"{device.name}:{plugin.name}",
        device=device.name,
        toolchain=plugin.name,
        summary=device.summary,
        precisions=tuple(p for p in own.precisions if p in device.precisions),
        can_export=all(requirement.installed for requirement in own.export_requires),
        can_run=all(requirement.installed for requirement in own.runtime_requires),
        export_command=f'pip install "deploykit[{own.export_extra}]"',
        run_command=f'pip install "deploykit[{own.runtime_extra}]"',
    )
