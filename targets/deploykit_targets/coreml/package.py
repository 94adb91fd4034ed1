"""An .mlpackage in canonical form: the same program gives the same bytes, in every process, on every day.

coremltools draws fresh identifiers for `Manifest.json`, writes the date into the metadata, serialises maps in any
order, and adds a file of debug handles. None of that is part of the model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

NAME = "model.mlpackage"
ENTRY = f"{NAME}/Manifest.json"
_MODEL = "com.apple.CoreML/model.mlmodel"
_WEIGHTS = "com.apple.CoreML/weights"
DROPPED = ("com.github.apple.coremltools.conversion_date",)


def write(model: Any, folder: Path) -> Path:
    """Write a coremltools `MLModel` of an ML Program into `folder`.

    Args:
        model: made or loaded with `skip_model_load=True`.
        folder: takes `model.mlpackage`, which must not be there yet.
    Returns:
        Path of the package.
    """
    package = folder / NAME
    specification = package / "Data" / _MODEL
    specification.parent.mkdir(parents=True)
    spec = model.get_spec()
    for key in DROPPED:
        spec.description.metadata.userDefined.pop(key, None)
    specification.write_bytes(spec.SerializeToString(deterministic=True))
    digests = {_MODEL: _digest(specification)}
    weights = Path(model.weights_dir or "")
    if model.weights_dir and weights.is_dir():
        copied = package / "Data" / _WEIGHTS
        copied.mkdir()
        for file in sorted(path for path in weights.iterdir() if path.is_file()):
            shutil.copyfile(file, copied / file.name)
        digests[_WEIGHTS] = hashlib.sha256(
            "".join(f"{path.name} {_digest(path)}\n" for path in sorted(copied.iterdir())).encode()
        ).hexdigest()
    (package / "Manifest.json").write_text(_manifest(digests), encoding="utf-8")
    return package


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(digests: dict[str, str]) -> str:
    """`Manifest.json` with identifiers made of path and content."""
    items = {}
    for path, digest in digests.items():
        kind = "Specification" if path == _MODEL else "Weights"
        items[_identifier(path, digest)] = {
            "author": "com.apple.CoreML",
            "description": f"CoreML Model {kind}",
            "name": path.rpartition("/")[2],
            "path": path,
        }
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": items,
        "rootModelIdentifier": _identifier(_MODEL, digests[_MODEL]),
    }
    return json.dumps(content, indent=4, sort_keys=True) + "\n"


def _identifier(path: str, digest: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path} {digest}")).upper()
