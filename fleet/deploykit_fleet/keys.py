"""The key of a cell: sha256 over everything that decides its artifact, found out without importing a framework.

    model      source of the factory and of all it imports, declared weights and files, `version`
    recipe     everything of the request: target, device table, precision, method, patterns, options, algorithms
    data       bytes of the calibration file, source of the metric, gates
    machine    versions of deploykit, Python and the tools that take part, instruction sets, threads

What a factory reads and nobody declared is not seen here. It is seen at the next capture, whose fingerprint is
recorded: another graph under the same key is refused (`deploykit_fleet.engine.exporting`).
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from deploykit._version import __version__
from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import UsageError
from deploykit.contract.host import this_host
from deploykit.contract.optional import versions
from deploykit.contract.request import Request
from deploykit.plugin.target import Target
from deploykit_fleet.release_file import SYNTHETIC, CellSpec, Model, ReleaseFile, Settings
from deploykit_fleet.sources import closure

_FORMAT = 1
"""Of keys: raised when something else comes to decide an artifact."""

CALIBRATION = "the calibration data"
_SHOWN = 200


@dataclass(frozen=True)
class ModelKeys:
    """What a model contributes.

    Attributes:
        capture: sha256 of everything that decides its captured graph.
        parts: what was hashed, by name, for people.
        data: of the calibration file; `synthetic`, or "" for the model's own.
        metric: of the metric's source; "" without one.
        metric_parts: what was hashed for that, by name.
    """

    capture: str
    parts: Mapping[str, str]
    data: str
    metric: str
    metric_parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def contents(self) -> dict[str, str]:
        """Hash or version of everything that was read, by name."""
        return {**self.metric_parts, **self.parts, CALIBRATION: self.data}


def digest(value: Any) -> str:
    """sha256 hex of plain data, dataclasses and enums; the order of mappings plays no part."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted", enc_hook=str)).hexdigest()


def machine() -> dict[str, Any]:
    """What of this machine and of deploykit decides an artifact."""
    host = this_host()
    python = ".".join(platform.python_version_tuple()[:2])
    return {"deploykit": __version__, "python": python, "arch": host.arch, "isa": host.isa, "os": host.os}


def model_keys(file: ReleaseFile, name: str, folders: tuple[Path, ...]) -> ModelKeys:
    """Hash what a model is made of.

    Raises:
        UsageError: a module or a file that it names is not there; the message has the line.
    """
    model, at = file.models[name], ("model", name)
    parts = _closure(file, (*at, "factory"), model.factory, folders)
    parts |= {f"file {path}": value for path, value in _files(file, name, model).items()}
    what = {
        "format": _FORMAT,
        "factory": model.factory,
        "parts": parts,
        "version": model.version,
        "dynamic_batch": model.dynamic_batch,
        "machine": machine(),
        "threads": file.settings.threads,
        "tools": versions("torch", "numpy"),
    }
    metric = _closure(file, (*at, "evaluate"), model.evaluate, folders) if model.evaluate else {}
    decided = digest([model.evaluate, metric]) if metric else ""
    return ModelKeys(digest(what), parts, _data(file, name, model), decided, metric)


def contents(name: str, model: Model, folder: Path, folders: tuple[Path, ...], *, data_only: bool) -> dict[str, str]:
    """`ModelKeys.contents` as it is now, for a process that knows one model of a release.

    Args:
        folder: of the release file.
        data_only: of the calibration data alone.
    Raises:
        UsageError: something that was there has gone.
    """
    file = ReleaseFile(folder / "release.toml", Settings(), {name: model}, (), "", "the release file")
    return {CALIBRATION: _data(file, name, model)} if data_only else model_keys(file, name, folders).contents


def cell_key(cell: CellSpec, keys: ModelKeys, request: Request, target: Target) -> str:
    """The key of one cell.

    Args:
        request: what its artifact shall be.
        target: the plugin that makes it.
    """
    from deploykit_calibration.algorithms import algorithm

    own = target.capabilities()
    needs = (*own.export_requires, *own.runtime_requires, *own.compile_requires)
    return digest(
        {
            "format": _FORMAT,
            "capture": keys.capture,
            "data": keys.data,
            "metric": keys.metric,
            "request": request,
            "algorithms": [[name, algorithm(name).version] for name in request.algorithms],
            "gates": cell.block.gates,
            "tools": versions(*(requirement.project for requirement in needs), "safetensors"),
            "plugin": _plugin(type(target).__module__),
        }
    )


@functools.cache
def _plugin(module: str) -> dict[str, str]:
    """What a target's own code is made of where it is somebody else's: version of its distribution, or its sources."""
    try:
        return closure([module], ())
    except (UsageError, OSError):  # loaded by an importer of its own
        return {}


def _closure(file: ReleaseFile, at: tuple[str, ...], name: str, folders: tuple[Path, ...]) -> dict[str, str]:
    try:
        return closure([name], folders)
    except UsageError as error:
        raise file.refusal(at, error.message, hint=error.hint) from error
    except OSError as error:
        raise file.refusal(at, f"{name}: {error}", hint="check permissions") from error


def _files(file: ReleaseFile, name: str, model: Model) -> dict[str, str]:
    """Hash of every declared file, by its path as declared."""
    found: dict[str, str] = {}
    for key, patterns in (
        ("weights", model.patterns[: len(model.patterns) - len(model.files)]),
        ("files", model.files),
    ):
        for pattern in patterns:
            try:
                paths = [path for path in sorted(_matching(file.folder, pattern)) if path.is_file()]
                found |= {_named(path, file.folder): sha256_of(path) for path in paths}
            except OSError as error:
                raise _unreadable(file, ("model", name, key), pattern, error) from error
            if not paths:
                message = f"{key}: there is no file {pattern!r}"
                raise file.refusal(("model", name, key), message, hint=f"paths start from {file.folder}")
    return found


def _matching(folder: Path, pattern: str) -> list[Path]:
    plain = folder / pattern
    if plain.exists() or Path(pattern).is_absolute() or not pattern.strip():
        return [plain]
    try:
        return list(folder.glob(pattern))
    except (ValueError, NotImplementedError):
        return []


def _named(path: Path, folder: Path) -> str:
    """Where a checkout lies plays no part in what it holds."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _data(file: ReleaseFile, name: str, model: Model) -> str:
    if model.calibration in ("", SYNTHETIC):
        return model.calibration
    path, at = file.folder / model.calibration, ("model", name, "calibration")
    try:
        if path.is_file():
            return sha256_of(path)
    except OSError as error:
        raise _unreadable(file, at, model.calibration, error) from error
    hint = f"an .npz or .safetensors file below {file.folder}, or {SYNTHETIC!r}"
    raise file.refusal(at, f"there is no calibration file {model.calibration!r}", hint=hint)


def _unreadable(file: ReleaseFile, at: tuple[str, ...], name: str, error: OSError) -> UsageError:
    message = f"{name[:_SHOWN]} cannot be read: {error.strerror or error}"
    return file.refusal(at, message, hint="check the path and its permissions")
