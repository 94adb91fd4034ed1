"""The registry of toolchains: entry points of the group `deploykit.targets`, and the devices that they serve.

Loading a plugin is cheap because a plugin imports nothing heavy. A plugin that cannot be loaded is listed with
its error, and does not take the others down.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from deploykit.contract.devices import Device
from deploykit.contract.entry_points import UPDATE, entry_points, loaded, named
from deploykit.contract.errors import ArtifactError, DeploykitError, UnknownTargetError
from deploykit.contract.installed import here_command
from deploykit.contract.near import near, question
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Target

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from deploykit.artifact.manifest import Manifest

GROUP = "deploykit.targets"
FASTEST = "fastest"
"""Stands for a toolchain where `deploykit.export` chooses it: `device:fastest`."""
_KIND = "toolchain"


@dataclass(frozen=True)
class TargetInfo:
    """One line of `deploykit.targets()`.

    Attributes:
        name: what a user types: a device, or `device:toolchain` where another toolchain is the device's default.
        device, toolchain: the two halves.
        summary: one line.
        precisions: the precisions that an export can be here; see `Target.precisions_here`.
        can_export: whether an export can be made here: the packages are installed, and nothing else is missing.
        can_run: whether the packages that run it are installed.
        can_compile: whether the vendor's compiler is installed, which reads exports on any machine.
        export_command, run_command: the pip commands that install them, or what to do where pip cannot.
        unavailable: what is missing beside packages, such as the GPU that is compiled on; "" where nothing is.
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
    can_compile: bool = False
    unavailable: str = ""


@dataclass(frozen=True)
class Resolved:
    """A target as typed, with the plugin and the device behind it."""

    typed: str
    target: Target
    device: Device


@dataclass(frozen=True)
class _Plugins:
    working: Mapping[str, Target]
    broken: Mapping[str, DeploykitError]


def toolchains() -> Mapping[str, Target]:
    """All plugins that load, by name, as a read-only view.

    Raises:
        DeploykitError: two distributions register the same name; the message names both.
    """
    return _plugins().working


def broken_toolchains() -> Mapping[str, DeploykitError]:
    """Plugins that are registered and cannot be loaded, with the reason."""
    return _plugins().broken


@functools.cache
def _plugins() -> _Plugins:
    made = {name: _make(entry) for name, entry in sorted(entry_points(GROUP, _KIND).items())}
    working = {name: plugin for name, plugin in made.items() if isinstance(plugin, Target)}
    broken = {name: error for name, error in made.items() if isinstance(error, DeploykitError)}
    return _Plugins(MappingProxyType(working), MappingProxyType(broken))


def _make(entry: EntryPoint) -> Target | DeploykitError:
    """The plugin, or why it cannot be used."""
    try:
        made = loaded(entry, _KIND, _instance)
    except DeploykitError as error:
        return error
    if not isinstance(made, Target) or made.name != entry.name:
        return DeploykitError(f"{named(entry, _KIND)} is not a deploykit Target of that name", hint=UPDATE)
    return made


def _instance(plugin: Callable[[], Target]) -> Target:
    made = plugin()
    made.capabilities()  # reads its device table
    return made


def toolchain(name: str) -> Target:
    """The plugin called `name`.

    Raises:
        UnknownTargetError: none is; the message lists those there are.
        DeploykitError: it is registered and cannot be loaded.
    """
    if name in toolchains():
        return toolchains()[name]
    if name in broken_toolchains():
        raise broken_toolchains()[name]
    raise UnknownTargetError(
        f"no toolchain {name!r} is installed; there are {', '.join(toolchains())}",
        hint="install the distribution that brings it",
    )


def check_agreement(manifest: Manifest) -> None:
    """Refuse an artifact whose target, device and toolchain do not mean the same thing here.

    Who opens `x86-cpu` expects ONNX Runtime to read a file, and not a native library to be run because the manifest
    names another toolchain. Where the toolchain is not installed there is nothing to compare with, and to run.

    Raises:
        ArtifactError: names all three.
    """
    if manifest.toolchain not in toolchains():
        return
    said = f"the manifest is for target {manifest.target!r}"
    try:
        meant = resolve(manifest.target)
    except DeploykitError as error:
        message = f"{said}, which means nothing here: {error.message}"
        raise ArtifactError(message, hint="update deploykit, or export the model again") from error
    if (meant.target.name, meant.device.name) != (manifest.toolchain, manifest.device):
        raise ArtifactError(
            f"{said}, which is {meant.device.name} through {meant.target.name}, and names {manifest.device!r}"
            f" through {manifest.toolchain!r}; the artifact is refused",
            hint="export the model again",
        )


def opener_of(path: Path) -> Target | None:
    """The plugin that opens model files of this suffix as they are; None where none does."""
    return next((plugin for plugin in toolchains().values() if path.suffix in plugin.capabilities().opens), None)


def resolve(typed: str) -> Resolved:
    """Find plugin and device for `device`, `toolchain` or `device:toolchain`.

    Raises:
        UnknownTargetError: no such name; the message offers near ones.
        DeploykitError: two plugins claim to be the device's default.
    """
    if not isinstance(typed, str):
        raise UnknownTargetError(f"a target is a string, not {typed!r}", hint='such as target="x86-cpu"')
    name, colon, chosen = typed.partition(":")
    if colon:
        if chosen == FASTEST and chosen not in toolchains():
            known = ", ".join(f"{name}:{plugin.name}" for plugin, _ in _serving(name)) or _suggestion(name)
            message = f"{typed!r} is what deploykit.export finds by measuring, and no toolchain"
            raise UnknownTargetError(message, hint=f"name one: {known}")
        plugin = toolchain(chosen)
        devices = plugin.capabilities().devices
        if name not in devices:
            raise UnknownTargetError(f"toolchain {chosen!r} does not serve {name!r}; it serves {', '.join(devices)}")
        return Resolved(typed, plugin, devices[name])
    if name in toolchains() or name in broken_toolchains():
        plugin = toolchain(name)
        return Resolved(typed, plugin, _generic_device(plugin))
    serving = _serving(name)
    if not serving and name == FASTEST:
        raise UnknownTargetError("the fastest of which device?", hint=f'such as target="x86-cpu:{FASTEST}"')
    if not serving:
        raise UnknownTargetError(f"unknown target {typed!r}", hint=_suggestion(typed))
    chosen_by = [pair for pair in serving if pair[1].default] or serving[:1]
    if len(chosen_by) > 1:
        claims = " and ".join(plugin.name for plugin, _ in chosen_by)
        raise DeploykitError(
            f"{claims} each call themselves the default toolchain of {typed!r}",
            hint=f'say which: "{typed}:{chosen_by[0][0].name}"',
        )
    return Resolved(typed, *chosen_by[0])


def _is_default(plugin: Target, device: str) -> bool:
    """Whether the device's name alone means this plugin; of two that claim it, neither."""
    try:
        return resolve(device).target is plugin
    except DeploykitError:
        return False


def _serving(device: str) -> list[tuple[Target, Device]]:
    offers = ((plugin, plugin.capabilities().devices.get(device)) for plugin in toolchains().values())
    return [(plugin, found) for plugin, found in offers if found is not None]


def _generic_device(plugin: Target) -> Device:
    devices = plugin.capabilities().devices
    return next((device for device in devices.values() if device.generic), next(iter(devices.values())))


def _suggestion(typed: str) -> str:
    """What may have been meant: another word for a device, a word's beginning, or a near spelling."""
    infos = targets()
    words: dict[str, list[str]] = {}
    for plugin in toolchains().values():
        for device in plugin.capabilities().devices.values():
            for word in device.also if _is_default(plugin, device.name) else ():
                words.setdefault(word, []).append(device.name)
    names = [name for info in infos for name in (info.name, info.toolchain)]
    return question(near(typed, names, words), "`deploykit targets` lists them all")


def targets() -> tuple[TargetInfo, ...]:
    """Every target that can be named, those that can be exported here first, and what the others lack."""
    infos = [info for plugin in toolchains().values() for info in _infos(plugin)]
    return tuple(sorted(infos, key=lambda info: (not info.can_export, info.toolchain, info.name)))


def _infos(plugin: Target) -> Iterator[TargetInfo]:
    own = plugin.capabilities()
    # Once per plugin and not per device: looking for a package that is not there searches every folder.
    can_export = all(requirement.installed for requirement in own.export_requires)
    can_run = all(requirement.installed for requirement in own.runtime_requires)
    can_compile = bool(own.compile_requires) and all(requirement.installed for requirement in own.compile_requires)
    for device in own.devices.values():
        is_default, unavailable = _is_default(plugin, device.name), plugin.unavailable_here(device)
        yield TargetInfo(
            name=device.name if is_default else f"{device.name}:{plugin.name}",
            device=device.name,
            toolchain=plugin.name,
            summary=device.summary,
            precisions=plugin.precisions_here(device),
            can_export=can_export and not unavailable,
            can_run=can_run,
            export_command=command_for(own.export_requires, own.export_extra, own.distribution),
            run_command=command_for(own.runtime_requires, own.runtime_extra, own.distribution),
            can_compile=can_compile,
            unavailable=unavailable,
        )


def command_for(requirements: tuple[Requirement, ...], extra: str, distribution: str) -> str:
    """The pip command that installs an extra, or what to do where pip does not have one of its packages."""
    return next((found.how for found in requirements if found.how), here_command(extra, distribution))
