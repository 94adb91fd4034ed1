"""The folder of a Hugging Face repository: a model card, and the artifact unchanged in a folder of its own.

    write_folder("out/net", "repo")       # then: huggingface_hub.upload_folder(folder_path="repo", ...)
    artifact = read_folder(huggingface_hub.snapshot_download("team/net"), "net", key="pub.pem")

Nothing here speaks to the Hub; its own client does, with its own logins. A snapshot of that client is links into a
cache, and artifacts hold no links: it is copied out, checked, and published whole.
"""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import manifest as layout
from deploykit.artifact.manifest import Manifest
from deploykit.artifact.replace import check_replaceable, replaceable
from deploykit.artifact.storage import publish_folder, staging_folder, write_file
from deploykit.contract.errors import ArtifactError, UsageError
from deploykit.contract.printable import printable
from deploykit.contract.reading import MAX_JSON_BYTES, open_regular, read_bytes
from deploykit.plugin.artifact import Artifact, load

if TYPE_CHECKING:
    from deploykit.contract.tensors import TensorSpec

FOLDER = "artifact"
"""Of a repository: holds the artifact."""
_CARD, _ATTRIBUTES = "README.md", ".gitattributes"
_LARGE = ("*.onnx", "*.data", "*.bin", "*.safetensors", "*.tflite", "*.pt2", "*.so", "*.engine", "*.mxr", "*.npz")


def write_folder(artifact: str | Path, folder: str | Path, *, license: str = "", base_model: str = "") -> Path:
    """Lay an artifact out as a repository.

    Args:
        artifact: its folder; every hash is checked first.
        folder: of the repository; what is there of the same names is replaced, other files stay.
        license: for the card's header, as the Hub names them (`apache-2.0`); "" for none.
        base_model: on the Hub, that this was made of (`team/model`); "" for none.
    Returns:
        The folder.
    Raises:
        ArtifactError: the artifact is damaged, or the folder holds something else where it is to lie.
        UsageError: a field of the header could be another one.
    """
    found, place = load(artifact), Path(folder)
    target = replaceable(place / FOLDER)
    header = {"license": license, "base_model": base_model}
    for name, text in header.items():
        if any(character in text for character in "\r\n:#'\"[]{}"):
            raise UsageError(f"{name}={text!r} is no name of the Hub's")
    with staging_folder(target, check_replaceable) as staging:
        shutil.copytree(found.path, staging, dirs_exist_ok=True)
        load(staging)
        publish_folder(staging, target, check_replaceable)
    write_file(place / _CARD, _card(found, header).encode())
    attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LARGE)
    write_file(place / _ATTRIBUTES, attributes.encode())
    return place


def read_folder(folder: str | Path, output: str | Path, *, key: str | Path | None = None) -> Artifact:
    """Take the artifact out of a repository's folder, or of a snapshot of the Hub's client.

    Args:
        folder: of the repository.
        output: folder of the artifact; an artifact that is there is replaced.
        key: as for `deploykit.load`.
    Raises:
        ArtifactError: there is no artifact in it, it is damaged, lists what is not there, or is not signed by the key.
    """
    source, target = Path(folder) / FOLDER, replaceable(output)
    if not source.is_dir():
        raise ArtifactError(f"{folder} holds no artifact", hint=f"it would lie in {FOLDER}/, as `write_folder` puts it")
    data = read_bytes(source / layout.MANIFEST_NAME, limit=MAX_JSON_BYTES, links=True)
    manifest = Manifest.from_json(data)
    with staging_folder(target, check_replaceable) as staging:
        for name, limit in _wanted(source, manifest):
            _copy(source / name, staging / name, limit)
        load(staging, key=key)
        publish_folder(staging, target, check_replaceable)
    return load(target, key=key)


def _wanted(source: Path, manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Files of the manifest and records that are there, with the most bytes of each."""
    yield from ((entry.path, entry.size) for entry in manifest.files)
    for name in sorted(layout.RECORD_NAMES):
        if (source / name).is_file():
            yield name, MAX_JSON_BYTES


def _copy(source: Path, target: Path, limit: int) -> None:
    with open_regular(source, limit=limit, links=True) as read:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as written:
                shutil.copyfileobj(read, written)
        except OSError as error:  # a name that is too long, or a file that is to be a folder, too
            message = f"cannot write {target}: {error.strerror or error}"
            raise ArtifactError(message, hint="check space and permissions") from error


def _card(artifact: Artifact, header: dict[str, str]) -> str:
    manifest, parity = artifact.manifest, artifact.manifest.parity
    fields = "".join(f"{name}: {text}\n" for name, text in header.items() if text)
    rows = [
        ("target", manifest.target),
        ("precision", manifest.precision.value),
        ("status", manifest.status),
        ("inputs", ", ".join(map(_described, manifest.inputs))),
        ("outputs", ", ".join(map(_described, manifest.outputs))),
        ("SQNR", "not measured" if parity is None or parity.sqnr_db is None else f"{parity.sqnr_db:.1f} dB"),
        ("evidence", artifact.evidence.value),
        ("fingerprint", artifact.fingerprint),
    ]
    table = "".join(f"| {name} | {_cell(text)} |\n" for name, text in rows)
    return (
        f"---\nlibrary_name: deploykit\ntags:\n- deploykit\n{fields}---\n\n# {artifact.path.name}\n\n"
        f"An artifact of deploykit, in [`{FOLDER}/`]({FOLDER}).\n\n| | |\n|---|---|\n{table}\n"
        "```python\nfrom huggingface_hub import snapshot_download\n"
        "from deploykit_trust.huggingface import read_folder\n\n"
        f'artifact = read_folder(snapshot_download("..."), "{artifact.path.name}")\n```\n'
    )


def _cell(text: str) -> str:
    """Words of a manifest, which may be a stranger's, as one cell of a table."""
    return html.escape(printable(" ".join(text.replace("|", "/").split())), quote=False)


def _described(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}[{', '.join(map(str, spec.shape))}]"
