"""`deploykit.push`: an artifact into a registry, blob by blob, the manifest last.

What the registry has already is not sent again; a blob whose line was cut goes on where the registry says it is. The
tag exists only when everything lies there, and is read back: a registry that keeps other bytes is found out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import ArtifactError, UsageError
from deploykit.plugin.artifact import load
from deploykit_trust.oci import layout
from deploykit_trust.oci.credentials import credentials_for
from deploykit_trust.oci.layout import Blob
from deploykit_trust.oci.reference import Reference
from deploykit_trust.oci.transport import LARGEST_ANSWER_BYTES, Answer, Line, LineError

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

_CHUNK_BYTES = 32 << 20
_TRIES, _PAUSE_S = 5, 0.5
_BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Pushed:
    """What lies in the registry.

    Attributes:
        reference: as it was given.
        pinned: the same by digest, which no one can change.
        digest: `sha256:...` of the image's manifest.
        sent: paths of the files that were sent; others were there.
        bytes_sent: of these.
    """

    reference: str
    pinned: str
    digest: str
    sent: tuple[str, ...]
    bytes_sent: int


def push(path: str | Path, reference: str, *, key: str | Path | None = None, plain_http: bool = False) -> Pushed:
    """Send an artifact, with its signature and records, to an OCI registry.

    Args:
        path: the artifact's folder; every hash is checked first.
        reference: `host/name:tag`.
        key: PEM file of a public key: refuse to send what it has not signed.
        plain_http: ask without TLS; registries on this machine are asked so anyway.
    Raises:
        ArtifactError: the artifact is damaged, not signed by the key, or the registry keeps other bytes.
        UsageError: the reference is of another form, or ends with a digest.
        DeviceError: the registry cannot be reached, or refuses.
    """
    place = Reference.parse(reference)
    if place.digest:
        raise UsageError(f"{reference} ends with a digest, which follows from what is sent", hint=f"{place.name}:v1")
    artifact = load(path, key=key)
    line = Line(place, credentials_for(place.host), plain_http=plain_http, scope="pull,push")
    _send_bytes(line, layout.EMPTY_DIGEST, layout.EMPTY)
    blobs = _blobs(artifact)
    sent = tuple(one.path for one in blobs if _send_file(line, artifact.path / one.path, one))
    artifact.check_unaltered()
    image = layout.image_bytes(blobs, _annotations(artifact))
    digest = _publish(line, image)
    return Pushed(reference, place.pinned(digest), digest, sent, sum(one.size for one in blobs if one.path in sent))


def _blobs(artifact: StoredArtifact) -> tuple[Blob, ...]:
    """Files of the manifest, and the records that are there, by path."""
    found = [Blob(entry.path, f"sha256:{entry.sha256}", entry.size) for entry in artifact.manifest.files]
    for name in layout.RECORDS:
        path = artifact.path / name
        if path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size > layout.RECORDS[name]:
            message = f"{name} has more than {layout.RECORDS[name]} bytes, which no pull takes"
            raise ArtifactError(message, hint="remove it, or export again")
        found.append(Blob(name, f"sha256:{sha256_of(path)}", path.stat().st_size))
    return tuple(sorted(found, key=lambda one: one.path))


def _annotations(artifact: StoredArtifact) -> dict[str, str]:
    manifest = artifact.manifest
    return {
        "org.opencontainers.image.title": artifact.path.name,
        "dev.deploykit.target": manifest.target,
        "dev.deploykit.precision": manifest.precision.value,
        "dev.deploykit.fingerprint": artifact.manifest_digest,
    }


def _send_file(line: Line, path: Path, blob: Blob) -> bool:
    """Whether the blob had to be sent."""
    return _again(lambda: _send(line, path, blob))


def _again(act: Callable[[], bool]) -> bool:
    """Try several times where the line is what fails."""
    for left in reversed(range(_TRIES)):
        try:
            return act()
        except LineError:
            if not left:
                raise
            time.sleep(_PAUSE_S * (_TRIES - left))
    raise AssertionError


def _has(line: Line, digest: str) -> bool:
    with line.ask("HEAD", line.url(f"blobs/{digest}"), ok=(200, 404)) as (answer, _):
        return answer.status == 200


def _begin(line: Line) -> str:
    with line.ask("POST", line.url("blobs/uploads/"), headers={"Content-Length": "0"}, ok=(202,)) as (answer, _):
        return _location(line, answer)


def _location(line: Line, answer: Answer) -> str:
    if not answer.headers.get("location"):
        raise ArtifactError(f"{line.reference.host} does not say where an upload goes on")
    return line.absolute(answer.headers["location"], answer)


def _send(line: Line, path: Path, blob: Blob) -> bool:
    if _has(line, blob.digest):
        return False
    upload, done, failed = _begin(line), 0, 0
    with path.open("rb") as file:
        while done < blob.size:
            file.seek(done)
            data = file.read(_CHUNK_BYTES)
            if not data:
                raise ArtifactError(f"{path} was cut while it was sent", hint="export it again")
            try:
                upload = _send_chunk(line, upload, data, done)
                done += len(data)
            except LineError:
                failed += 1
                if failed == _TRIES:
                    raise
                time.sleep(_PAUSE_S * failed)
                upload, done = _where(line, upload)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
    if f"sha256:{digest.hexdigest()}" != blob.digest:
        raise ArtifactError(f"{path} was altered while it was sent", hint="deploykit push again")
    _finish(line, upload, blob.digest)
    return True


def _send_chunk(line: Line, upload: str, data: bytes, start: int) -> str:
    headers = {
        "Content-Type": _BINARY,
        "Content-Length": str(len(data)),
        "Content-Range": f"{start}-{start + len(data) - 1}",
    }
    with line.ask("PATCH", upload, headers=headers, body=data, ok=(202,)) as (answer, _):
        return _location(line, answer)


def _where(line: Line, upload: str) -> tuple[str, int]:
    """Where an upload goes on, and how many bytes of it the registry has."""
    with line.ask("GET", upload, ok=(204,)) as (answer, _):
        last = answer.headers.get("range", "").rpartition("-")[2]
        return _location(line, answer), int(last) + 1 if last.isdigit() and last != "0" else 0


def _finish(line: Line, upload: str, digest: str) -> None:
    url = f"{upload}{'&' if '?' in upload else '?'}digest={quote(digest, safe='')}"
    with line.ask("PUT", url, headers={"Content-Length": "0"}, body=b"", ok=(201,)) as (answer, _):
        _check_said(line, answer, digest)


def _send_bytes(line: Line, digest: str, data: bytes) -> None:
    if _has(line, digest):
        return
    upload = _send_chunk(line, _begin(line), data, 0)
    _finish(line, upload, digest)


def _check_said(line: Line, answer: Answer, digest: str) -> None:
    said = answer.headers.get("docker-content-digest", digest)
    if said != digest:
        raise ArtifactError(f"{line.reference.host} keeps {said[:80]!r} where {digest} was sent")


def _publish(line: Line, image: bytes) -> str:
    """Put the manifest under its tag, and read it back."""
    digest = f"sha256:{hashlib.sha256(image).hexdigest()}"
    headers = {"Content-Type": layout.MANIFEST_TYPE, "Content-Length": str(len(image))}
    url = line.url(f"manifests/{line.reference.tag}")
    with line.ask("PUT", url, headers=headers, body=image, ok=(201,)) as (answer, _):
        _check_said(line, answer, digest)
    with line.ask("GET", url, headers={"Accept": layout.MANIFEST_TYPE}) as (_, response):
        kept = response.read(LARGEST_ANSWER_BYTES)
    if kept != image:
        message = f"{line.reference} holds another manifest than was sent"
        raise ArtifactError(message, hint="another push to the same tag at the same time? push again")
    return digest
