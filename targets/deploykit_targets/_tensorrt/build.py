"""What both toolchains do with options of the build: they are defaults of the build program, and its command line."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from deploykit_targets._on_device.portable import build_from, build_here
from deploykit_targets._tensorrt.build_engine import ENGINE
from deploykit_targets._tensorrt.requirements import OF_THE_EXPORT, PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.artifact.store import StoredArtifact
    from deploykit.plugin.target import Payload
    from deploykit_calibration.prepared import Prepared

_INVERTED = {"gpu_fallback": "no_gpu_fallback"}
"""Options that are on unless the build program's flag turns them off."""


def build_engine_of(artifact: StoredArtifact, folder: Path, options: Any, python: str | None) -> Payload:
    """Build the engine of an artifact into `folder`; caches for the next build stay with the artifact.

    Args:
        options: the options of either toolchain.
        python: the Python that has the bindings.
    Raises:
        DeviceError: no driver, another GPU than the artifact's, or the library crashed.
        MissingDependencyError: no Python here has the bindings.
        ConversionError: the compiler refused; carries what it logged.
    """
    defaults = blueprint_options(options)
    return build_from(
        artifact, folder, PROGRAM.name, ENGINE, arguments=arguments_of(options), options=defaults, python=python
    )


def build_at_export(prepared: Prepared, folder: Path, payload: Payload, python: str | None) -> Payload:
    """The payload, with its engine where the device is in this machine."""
    return build_here(prepared, folder, payload, PROGRAM.name, ENGINE, arguments_of(prepared.options), python)


def blueprint_options(options: Any) -> dict[str, Any]:
    """Options of the build as defaults of the build program's command line, in the order in which they are declared."""
    given = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in OF_THE_EXPORT}
    named = {_INVERTED.get(name, name): not value if name in _INVERTED else value for name, value in given.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


def arguments_of(options: Any) -> list[str]:
    """Options of the build as the build program's command line takes them; `shapes` as one `--shape` each."""
    arguments: list[str] = []
    for name, value in blueprint_options(options).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            arguments += [part for each in value for part in (flag.removesuffix("s"), each)]
        elif isinstance(value, bool):
            arguments += [flag] if value else []
        elif value is not None:
            arguments += [flag, str(value)]
    return arguments
