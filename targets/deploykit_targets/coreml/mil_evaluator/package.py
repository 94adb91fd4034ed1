"""Where the parts of an .mlpackage are: manifest, specification, weights. Nothing outside the folder is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import ArtifactError


@dataclass(frozen=True)
class PackageFiles:
    """Paths of a package.

    Attributes:
        specification: the protobuf file.
        weights: folder of the weight files; may be absent when the program has no large constants.
    """

    specification: Path
    weights: Path


def locate(path: Path) -> PackageFiles:
    """The files of package `path`.

    Args:
        path: an .mlpackage folder, or the specification file itself with `weights/` beside it.
    Raises:
        ArtifactError: there is no such package, or its manifest is damaged or points outside of it.
    """
    if path.is_file():
        return PackageFiles(path, path.parent / "weights")
    if not path.is_dir():
        raise ArtifactError(f"there is no model package at {path}")
    specification = _root_model(path)
    return PackageFiles(specification, specification.parent / "weights")


def _root_model(path: Path) -> Path:
    manifest = path / "Manifest.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        entry = content["itemInfoEntries"][content["rootModelIdentifier"]]
        relative = Path(entry["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{manifest} is missing or damaged: {error!r}", hint="save the model again") from error
    data = (path / "Data").resolve()
    target = (data / relative).resolve()
    if not target.is_relative_to(data):
        raise ArtifactError(f"{manifest} points outside the package: {relative}")
    if not target.is_file():
        raise ArtifactError(f"the package has no {relative}, which its manifest names as the model")
    return target
