"""The statement that the OpenSSF model-signing format signs: every file of a folder with its sha256.

Written as `model_signing` 1.1 writes it (predicate type `https://model_signing/signature/v1.0`, method `files`), and
read with nothing left to the signer: what a signature leaves out is fixed here, and a statement that leaves out more
is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from deploykit.artifact import manifest as layout
from deploykit.contract.errors import ArtifactError
from deploykit.contract.reading import decode_json
from deploykit_trust.envelope import STATEMENT_TYPE

PREDICATE = "https://model_signing/signature/v1.0"
LEFT_OUT = (layout.SIGNATURE_NAME, *sorted(layout.UNSIGNED_NAMES))
"""What our signatures leave out: the signature itself, and the records."""
_GIT = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""What the stock tool leaves out by default; an artifact that holds one is refused as one that holds unlisted files."""
_AGAIN = "sign the artifact again"


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: _Digest


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: str
    digest: str


class _Serialization(msgspec.Struct, frozen=True):
    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: list[str] = []


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(msgspec.Struct, rename={"type": "_type", "predicate_type": "predicateType"}, frozen=True):
    type: str
    subject: list[_Subject]
    predicate_type: str
    predicate: _Predicate


def statement_of(name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """The statement about a folder.

    Args:
        name: of the folder; says nothing to a verifier.
        digests: path of every signed file, with forward slashes -> sha256 in hex.
    """
    ordered = dict(sorted(digests.items(), key=lambda each: each[0].split("/")))
    resources = [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in ordered.items()]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root_digest(ordered.values())}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(LEFT_OUT),
            },
            "resources": resources,
        },
    }


def root_digest(digests: Iterable[str]) -> str:
    """sha256 over the digests of all files, in the order of the statement: the name of a model as a whole."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def signed_files(payload: bytes) -> dict[str, str]:
    """The files that a statement is about: path -> sha256 in hex.

    Args:
        payload: of an envelope whose signature holds.
    Raises:
        ArtifactError: it is another kind of statement, or one that leaves out what a payload could be.
    """
    found = decode_json(payload, _Statement, what="the signed statement", hint=_AGAIN)
    if found.type != STATEMENT_TYPE or found.predicate_type != PREDICATE:
        raise ArtifactError(f"what is signed is no {PREDICATE} but {found.predicate_type[:200]!r}", hint=_AGAIN)
    _check_method(found.predicate.serialization)
    files: dict[str, str] = {}
    for one in found.predicate.resources:
        layout.check_relative(one.name)
        if one.name in files or one.algorithm != "sha256" or not layout.is_digest(one.digest):
            raise ArtifactError(f"the signed statement names {one.name!r} twice, or without its sha256", hint=_AGAIN)
        files[one.name] = one.digest
    if len(found.subject) != 1 or found.subject[0].digest.sha256 != root_digest(files.values()):
        raise ArtifactError("the signed statement contradicts itself: its digest is not that of its files", hint=_AGAIN)
    return files


def _check_method(found: _Serialization) -> None:
    if (found.method, found.hash_type) != ("files", "sha256") or found.allow_symlinks:
        made = f"{found.method} with {found.hash_type}{', links followed' if found.allow_symlinks else ''}"
        raise ArtifactError(f"the signature is by {made}; only files with sha256, no links, are taken", hint=_AGAIN)
    hidden = sorted(set(found.ignore_paths) - {*LEFT_OUT} - _GIT)
    if hidden:
        raise ArtifactError(f"the signature leaves out {', '.join(hidden)[:200]}, which may be read", hint=_AGAIN)
