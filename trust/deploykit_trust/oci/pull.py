"""`deploykit.pull`: an artifact out of a registry, whole or absent, every byte of it hashed here.

The image's manifest comes first and must be what its digest says; then the artifact's own manifest and, where a key is
asked for, its signature; only then the files, each no longer than that manifest lists. What has arrived of a cut
download is kept in the cache, and goes on from there. The folder appears when all of it was loaded once more, as any
artifact is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deploykit.artifact import manifest as artifact_layout
from deploykit.artifact.manifest import Manifest
from deploykit.artifact.replace import check_replaceable, replaceable
from deploykit.artifact.storage import cache_folder, publish_folder, staging_folder
from deploykit.contract.errors import ArtifactError
from deploykit.plugin.artifact import Artifact, load
from deploykit_trust.oci import layout
from deploykit_trust.oci.credentials import credentials_for
from deploykit_trust.oci.layout import Blob
from deploykit_trust.oci.reference import Reference
from deploykit_trust.oci.transport import LARGEST_ANSWER_BYTES, Line, LineError

_CHUNK_BYTES = 1 << 20
_TRIES, _PAUSE_S = 5, 0.5
_SPARE_BYTES = 64 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OTHER = "somebody between, or the registry, altered it: pull by a digest that its maker gave you"


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Attributes:
        artifact: loaded, and signed where a key was asked for.
        pinned: the reference by digest: what to write down.
        digest: `sha256:...` of the image's manifest.
    """

    artifact: Artifact
    pinned: str
    digest: str


def pull(
    reference: str,
    output: str | Path | None = None,
    *,
    key: str | Path | None = None,
    plain_http: bool = False,
) -> Pulled:
    """Fetch an artifact from an OCI registry; nothing of it is run.

    Args:
        reference: `host/name:tag`, or `host/name@sha256:...`, which cannot change.
        output: folder of the artifact; an artifact that is there is replaced. Default: the last part of the name.
        key: PEM file of a public key that must have signed it; checked before the large files are fetched, and after.
        plain_http: ask without TLS; registries on this machine are asked so anyway.
    Raises:
        ArtifactError: a byte is not as its digest says, it is no artifact, not signed by the key, or cannot be written.
        UsageError: the reference is of another form, or the key is none.
        DeviceError: the registry cannot be reached, refuses, or the line was cut again and again.
    """
    place = Reference.parse(reference)
    folder = replaceable(place.name.rpartition("/")[2] if output is None else output)
    line = Line(place, credentials_for(place.host), plain_http=plain_http)
    data, digest = _image(line)
    blobs = layout.blobs_in(data, str(place))
    with staging_folder(folder, check_replaceable) as staging:
        _fetch_all(line, blobs, staging, key)
        load(staging, key=key)
        publish_folder(staging, folder, check_replaceable)
    return Pulled(load(folder, key=key), place.pinned(digest), digest)


def _image(line: Line) -> tuple[bytes, str]:
    """The image's manifest and its digest, which the reference or the registry named before."""
    place = line.reference
    url = line.url(f"manifests/{place.target}")
    with line.ask("GET", url, headers={"Accept": layout.MANIFEST_TYPE}) as (answer, response):
        data = response.read(LARGEST_ANSWER_BYTES + 1)
    if len(data) > LARGEST_ANSWER_BYTES:
        raise ArtifactError(f"the manifest at {place} has more than {LARGEST_ANSWER_BYTES} bytes, and is not read")
    said = answer.headers.get("docker-content-digest", "")
    wanted = place.digest or said
    if not _DIGEST.fullmatch(wanted):
        hint = f"pull by digest: {place.host}/{place.name}@sha256:..."
        raise ArtifactError(f"{place.host} does not say the digest of what {place.tag!r} is", hint=hint)
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != wanted or (said and said != found):
        raise ArtifactError(f"the manifest at {place} is {found}, where {wanted} was to be", hint=_OTHER)
    return data, found


def _fetch_all(line: Line, blobs: Mapping[str, Blob], staging: Path, key: str | Path | None) -> None:
    first = [name for name in layout.RECORDS if name in blobs]
    for name in first:
        _fetch(line, blobs[name], staging)
    data = (staging / artifact_layout.MANIFEST_NAME).read_bytes()
    layout.check_against(blobs, Manifest.from_json(data), str(line.reference))
    if key is not None:
        _check_early(line.reference, staging, data, key)
    rest = [blob for name, blob in blobs.items() if name not in first]
    _check_space(staging, sum(blob.size for blob in rest))
    for blob in rest:
        _fetch(line, blob, staging)


def _check_early(place: Reference, staging: Path, data: bytes, key: str | Path) -> None:
    """Refuse a manifest that is not signed before what it lists is fetched; the rest is checked when all is there."""
    from deploykit_trust.verifying import signed_by

    if not (staging / artifact_layout.SIGNATURE_NAME).exists():
        raise ArtifactError(f"what lies at {place} is not signed", hint="ask its maker for `deploykit sign`")
    if signed_by(staging, key).get(artifact_layout.MANIFEST_NAME) != hashlib.sha256(data).hexdigest():
        raise ArtifactError(f"{artifact_layout.MANIFEST_NAME} at {place} is not what was signed", hint=_OTHER)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + _SPARE_BYTES > free:
        raise ArtifactError(f"it has {size} bytes, and {folder.parent} has room for {free}", hint="free space there")


def _fetch(line: Line, blob: Blob, staging: Path) -> None:
    """Put one blob in its place, through the cache: what has arrived of it is kept whatever happens."""
    with _part(blob) as (path, file):
        failed = 0
        while True:
            try:
                _complete(line, blob, file)
                break
            except LineError:
                failed += 1
                if failed == _TRIES:
                    raise
                time.sleep(_PAUSE_S * failed)
        target = staging / blob.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        target.chmod(0o644)


@contextlib.contextmanager
def _part(blob: Blob) -> Iterator[tuple[Path, BinaryIO]]:
    """The file in the cache that a blob arrives in, ours alone: another process that pulls the same has its own."""
    folder = cache_folder() / "pull"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(100):
            path = folder / f"{blob.digest.removeprefix('sha256:')}.{number}"
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
            with os.fdopen(os.open(path, flags, 0o600), "r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    continue  # it was moved to its place meanwhile
                yield path, file
                return
    except OSError as error:
        message = f"cannot write {folder}: {error.strerror or error}"
        raise ArtifactError(message, hint="check space and permissions, or set DEPLOYKIT_CACHE") from error
    raise ArtifactError(f"{folder} is in use by a hundred others", hint="remove what is old there")


def _complete(line: Line, blob: Blob, file: BinaryIO) -> None:
    """Fetch what is missing of a blob, and check all of it; what an earlier pull left is used if it is right.

    Raises:
        ArtifactError: it has another digest or is longer than it should be; what has arrived is thrown away.
        LineError: the line was cut; what has arrived is kept.
    """
    digest, done = _arrived(file)
    for start in dict.fromkeys((done if done <= blob.size else 0, 0)):
        if start != done:
            file.truncate(0)
            digest, done = hashlib.sha256(), 0
        if done < blob.size:
            done, digest = _download(line, blob, file, done, digest)
        if done < blob.size:
            hint = "pull again: it goes on from there"
            raise LineError(f"{blob.path} was cut after {done} of {blob.size} bytes", hint=hint)
        if f"sha256:{digest.hexdigest()}" == blob.digest:
            file.flush()
            os.fsync(file.fileno())
            return
    file.truncate(0)
    raise ArtifactError(f"{blob.path} at {line.reference} is not as its digest says: it is thrown away", hint=_OTHER)


def _arrived(file: BinaryIO) -> tuple[hashlib._Hash, int]:
    """Hash and length of what is there."""
    digest, done = hashlib.sha256(), 0
    file.seek(0)
    while data := file.read(_CHUNK_BYTES):
        digest.update(data)
        done += len(data)
    return digest, done


def _download(line: Line, blob: Blob, file: BinaryIO, done: int, digest: hashlib._Hash) -> tuple[int, hashlib._Hash]:
    headers = {"Range": f"bytes={done}-"} if done else {}
    with line.ask("GET", line.url(f"blobs/{blob.digest}"), headers=headers, ok=(200, 206, 416)) as (answer, response):
        if done and not (answer.status == 206 and answer.headers.get("content-range", "").startswith(f"bytes {done}-")):
            file.truncate(0)  # the registry begins anew
            digest, done = hashlib.sha256(), 0
            if answer.status != 200:
                raise LineError(f"{line.reference.host} does not go on with {blob.path}", hint="pull again")
        elif not done and answer.status != 200:
            raise ArtifactError(f"{line.reference.host} sends a part of {blob.path} that was not asked for")
        file.seek(done)
        while done <= blob.size and (data := response.read(min(_CHUNK_BYTES, blob.size - done + 1))):
            done += len(data)
            if done > blob.size:
                file.truncate(0)
                raise ArtifactError(f"{blob.path} at {line.reference} is longer than {blob.size} bytes", hint=_OTHER)
            file.write(data)
            digest.update(data)
    return done, digest
