"""A signed statement in a file: in-toto statement, in a DSSE envelope, in a Sigstore bundle of version 0.3, as JSON.

Of what a bundle may hold only what a signature by a key needs is read; another field, another spelling of the same
JSON, another form of the same base64 is refused, so that no byte of the file can be changed without a refusal.
Specifications: github.com/secure-systems-lab/dsse (protocol 1.0.0), sigstore/protobuf-specs (bundle 0.3), in-toto
attestation 1.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import msgspec

from deploykit.contract.errors import ArtifactError
from deploykit.contract.reading import decode_json
from deploykit_trust.keys import PrivateKey, PublicKey

LARGEST_BYTES = 16 << 20
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_AGAIN = "get it from the maker of the artifact again, or sign again"


class _Named(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """JSON with the names of Protobuf, and with no other field than these."""


class _Signature(_Named, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(_Named, frozen=True):
    payload: str
    payload_type: str
    signatures: list[_Signature]


class _KeyHint(_Named, frozen=True):
    hint: str


class _Material(_Named, frozen=True):
    public_key: _KeyHint
    tlog_entries: list[Any] = []


class _Bundle(_Named, frozen=True):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


def seal(statement: dict[str, Any], key: PrivateKey) -> bytes:
    """The bytes of a bundle with a statement that `key` has signed."""
    payload = json.dumps(statement, indent=2, ensure_ascii=False).encode()
    bundle = _Bundle(
        _MEDIA_TYPE,
        _Material(_KeyHint(key.public.hint)),
        _Envelope(_encoded(payload), _PAYLOAD_TYPE, [_Signature(_encoded(key.sign(_signed(payload))))]),
    )
    return msgspec.json.encode(bundle)


def opened(data: bytes, key: PublicKey, *, what: str) -> bytes:
    """The statement of a bundle that `key` has signed, as JSON.

    Args:
        data: of the file; at most `LARGEST_BYTES`.
        what: the file's name, for messages.
    Raises:
        ArtifactError: it is no such bundle, is of another key, or was altered.
    """
    bundle = decode_json(data, _Bundle, what=what, hint=_AGAIN, verdict="is no signature by a key")
    _check_spelling(data, what)
    envelope = bundle.dsse_envelope
    if bundle.media_type != _MEDIA_TYPE or envelope.payload_type != _PAYLOAD_TYPE:
        raise ArtifactError(f"{what} is a bundle of another type than {_MEDIA_TYPE}", hint=_AGAIN)
    if bundle.verification_material.public_key.hint != key.hint:
        message = f"{what} is a signature by another key than {key.name}"
        raise ArtifactError(message, hint="pass the public key of who signed it, if that is who you trust")
    if len(envelope.signatures) != 1 or envelope.signatures[0].keyid or bundle.verification_material.tlog_entries:
        raise ArtifactError(f"{what} holds more than one signature by one key", hint=_AGAIN)
    payload = _decoded(envelope.payload, what)
    key.check(_decoded(envelope.signatures[0].sig, what), _signed(payload))
    return payload


def _signed(payload: bytes) -> bytes:
    """What a DSSE signature is over: type and payload, each with its length."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _check_spelling(data: bytes, what: str) -> None:
    """Refuse JSON that no writer of bundles writes: spaces, escapes or repeated names could be changed unnoticed."""
    try:
        text = data.decode()
        found = json.loads(text)
        written = (json.dumps(found, separators=(",", ":")), json.dumps(found), json.dumps(found, indent=2))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{what} cannot be read: {error}", hint=_AGAIN) from error
    if text not in written:
        raise ArtifactError(f"{what} is not as a signer writes it: it was altered", hint=_AGAIN)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str, what: str) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtifactError(f"{what} holds what is not base64: {error}", hint=_AGAIN) from error
    if _encoded(found) != text:  # the last characters have bits that mean nothing
        raise ArtifactError(f"{what} is not as a signer writes it: it was altered", hint=_AGAIN)
    return found
