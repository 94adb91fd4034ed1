"""An .mlpackage in canonical form: the same program gives the same bytes, in every process, on every day.

coremltools draws fresh identifiers for `Manifest.json`, writes the date into the metadata, serialises maps in any
order, adds a file of debug handles, and numbers the constants that have no name of their own in an order that changes
with the memory of the process. None of that is part of the model.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from itertools import count
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
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            _number_constants(block)
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


def _number_constants(block: Any) -> None:
    """Rename the constants that coremltools numbered, `const_7`, in the order in which they stand."""
    operations = list(_operations(block))
    taken = {output.name for op in operations for output in op.outputs if not _is_numbered(op)}
    numbers = (name for name in map("const_{}".format, count()) if name not in taken)
    names = {op.outputs[0].name: next(numbers) for op in operations if _is_numbered(op)}
    for op in operations:
        for output in op.outputs:
            output.name = names.get(output.name, output.name)
        if op.type == "const":
            strings = op.attributes["name"].immediateValue.tensor.strings
            strings.values[:] = [names.get(value, value) for value in strings.values]
        for argument in (entry for value in op.inputs.values() for entry in value.arguments):
            if argument.WhichOneof("binding") == "name":
                argument.name = names.get(argument.name, argument.name)
        for inner in op.blocks:
            inner.outputs[:] = [names.get(name, name) for name in inner.outputs]
    block.outputs[:] = [names.get(name, name) for name in block.outputs]


def _is_numbered(op: Any) -> bool:
    return op.type == "const" and re.fullmatch(r"const_\d+", op.outputs[0].name) is not None


def _operations(block: Any) -> Iterator[Any]:
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from _operations(inner)


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
