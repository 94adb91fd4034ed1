"""How an artifact lies in a registry: an OCI image manifest (1.1) with one layer a file, as `oras` and others write it.

`artifactType` is ours, the configuration is the empty one of the specification, and the annotation
`org.opencontainers.image.title` of a layer is its path in the artifact. What is read is taken only if it is exactly
that: names that leave the folder, name a file twice, or are of no file of an artifact are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from deploykit.artifact import manifest as artifact_layout
from deploykit.artifact.manifest import Manifest, check_relative
from deploykit.contract.errors import ArtifactError
from deploykit.contract.reading import MAX_JSON_BYTES, decode_json
from deploykit_trust.envelope import LARGEST_BYTES as LARGEST_SIGNATURE

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.deploykit.artifact.v1"
FILE_TYPE = "application/vnd.deploykit.file.v1"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
EMPTY = b"{}"
EMPTY_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
RECORDS: Mapping[str, int] = {
    artifact_layout.MANIFEST_NAME: MAX_JSON_BYTES,
    artifact_layout.SIGNATURE_NAME: LARGEST_SIGNATURE,
    artifact_layout.LINEAGE_NAME: LARGEST_SIGNATURE,
    artifact_layout.PROFILE_NAME: MAX_JSON_BYTES,
    artifact_layout.CHOICE_NAME: MAX_JSON_BYTES,
    artifact_layout.LOG_NAME: MAX_JSON_BYTES,
}
"""Files that an artifact's manifest does not list, with the most bytes that each may have."""
_FOREIGN = "is it an artifact that `deploykit push` wrote?"


class _Descriptor(msgspec.Struct, rename="camel", frozen=True):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class _Image(msgspec.Struct, rename="camel", frozen=True):
    schema_version: int
    config: _Descriptor
    layers: list[_Descriptor]
    media_type: str = ""
    artifact_type: str = ""


@dataclass(frozen=True)
class Blob:
    """A file of an artifact, in a registry.

    Attributes:
        path: in the artifact, with forward slashes.
        digest: `sha256:...`.
        size: in bytes.
    """

    path: str
    digest: str
    size: int


def image_bytes(blobs: tuple[Blob, ...], annotations: Mapping[str, str]) -> bytes:
    """The manifest of an image that holds files; the same files give the same bytes."""
    found: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": EMPTY_DIGEST, "size": len(EMPTY)},
        "layers": [
            {"mediaType": FILE_TYPE, "digest": one.digest, "size": one.size, "annotations": {TITLE: one.path}}
            for one in blobs
        ],
        "annotations": dict(annotations),
    }
    return json.dumps(found, separators=(",", ":"), sort_keys=True).encode()


def blobs_in(data: bytes, what: str) -> dict[str, Blob]:
    """The files that an image's manifest names, by path.

    Args:
        data: bytes whose digest was checked.
        what: the reference, for messages.
    Raises:
        ArtifactError: it is no artifact of deploykit, or a name or size is impossible.
    """
    image = decode_json(data, _Image, what=f"what lies at {what}", hint=_FOREIGN)
    if image.schema_version != 2 or image.media_type != MANIFEST_TYPE or image.artifact_type != ARTIFACT_TYPE:
        kind = image.artifact_type or image.config.media_type or image.media_type
        raise ArtifactError(f"what lies at {what} is no artifact of deploykit, but {kind[:100]!r}", hint=_FOREIGN)
    found: dict[str, Blob] = {}
    folded: set[str] = set()
    for layer in image.layers:
        path = layer.annotations.get(TITLE, "")
        check_relative(path)
        hexadecimal = layer.digest.removeprefix("sha256:")
        if layer.media_type != FILE_TYPE or layer.digest == hexadecimal or not artifact_layout.is_digest(hexadecimal):
            raise ArtifactError(f"{path} at {what} is of a kind that is not taken: {layer.media_type[:60]!r}")
        if path.casefold() in folded:
            raise ArtifactError(f"{path} stands twice at {what}", hint=_FOREIGN)
        folded.add(path.casefold())
        found[path] = Blob(path, layer.digest, layer.size)
    if artifact_layout.MANIFEST_NAME not in found:
        raise ArtifactError(f"what lies at {what} has no {artifact_layout.MANIFEST_NAME}", hint=_FOREIGN)
    for path, most in RECORDS.items():
        if path in found and not 0 <= found[path].size <= most:
            raise ArtifactError(f"{path} at {what} would have {found[path].size} bytes; more than {most} are not taken")
    return found


def check_against(blobs: Mapping[str, Blob], manifest: Manifest, what: str) -> None:
    """Refuse an image whose files are not those that the artifact's manifest lists, and records.

    Raises:
        ArtifactError: names the file.
    """
    listed = {entry.path: entry for entry in manifest.files}
    for path, blob in blobs.items():
        entry = listed.get(path)
        if entry is None and path not in RECORDS:
            raise ArtifactError(f"{path} lies at {what}, and the artifact's manifest does not list it", hint=_FOREIGN)
        if entry is not None and (blob.size, blob.digest) != (entry.size, f"sha256:{entry.sha256}"):
            raise ArtifactError(f"{path} at {what} is not the file that the artifact's manifest lists", hint=_FOREIGN)
    missing = sorted(listed.keys() - blobs.keys())
    if missing:
        raise ArtifactError(f"{', '.join(missing[:3])} of the artifact is missing at {what}", hint="push it again")
