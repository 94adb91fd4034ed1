"""Where the parts of an .mlpackage are: manifest, specification, weights. Nothing outside the folder is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deploykit.contract.errors import ArtifactError
from deploykit.contract.reading import read_json


@dataclass(frozen=True)
class PackageFiles:
    """Paths of a package.

    Attributes:
        specification: the protobuf file.
        weights: folder of the weight files; may be absent when the program has no large constants.
    """

    specification: Path
    weights: Path


@dataclass(frozen=True)
class _Item:
    path: str


@dataclass(frozen=True)
class _Manifest:
    """What is read of a package's own manifest, with its names."""

    rootModelIdentifier: str  # noqa: N815
    itemInfoEntries: dict[str, _Item]  # noqa: N815


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
    manifest, data = path / "Manifest.json", (path / "Data").resolve()
    try:
        content = read_json(manifest, _Manifest, hint="save the model again")
        relative = Path(content.itemInfoEntries[content.rootModelIdentifier].path)
        target = (data / relative).resolve()
    except (ArtifactError, OSError, ValueError, KeyError) as error:  # a name that is too long, or has NUL
        raise ArtifactError(f"{manifest} is missing or damaged: {error}", hint="save the model again") from error
    if not target.is_relative_to(data):
        raise ArtifactError(f"{manifest} points outside the package: {relative}")
    if not os.path.isfile(target):
        raise ArtifactError(f"the package has no {relative}, which its manifest names as the model")
    return target
