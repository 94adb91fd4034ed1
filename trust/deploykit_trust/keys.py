"""Keys in PEM files: elliptic curves P-256, P-384 and P-521, which is what the OpenSSF model-signing format has.

A key is read, and never written, shown or cached. What is no such key is refused with the command that makes one.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.contract.errors import ArtifactError, UsageError
from deploykit.contract.optional import require
from deploykit.contract.reading import read_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

PASSWORD = "DEPLOYKIT_KEY_PASSWORD"
"""Environment variable: the password of an encrypted private key."""
MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out k.pem; openssl ec -in k.pem -pubout -out pub.pem"
_LARGEST_BYTES = 64 << 10
_PURPOSE = "sign artifacts and check signatures"


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with.

    Attributes:
        name: of its file, for messages.
        hint: sha256 of its PEM form, by which a bundle says whose signature it holds.
    """

    name: str
    hint: str
    _key: EllipticCurvePublicKey

    def check(self, signature: bytes, message: bytes) -> None:
        """Refuse a signature that is not of this key and this message.

        Raises:
            ArtifactError: it is not.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

        try:
            self._key.verify(signature, message, ECDSA(_hash_of(self._key)))
        except InvalidSignature as error:
            raise ArtifactError(
                f"the signature is not of {self.name}, or what was signed was altered",
                hint="get artifact and public key from their maker again",
            ) from error


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs."""

    public: PublicKey
    _key: EllipticCurvePrivateKey

    def sign(self, message: bytes) -> bytes:
        """The signature in DER form; another one each time, and each valid."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

        return self._key.sign(message, ECDSA(_hash_of(self._key.public_key())))


def read_private_key(path: str | Path, password: str | None = None) -> PrivateKey:
    """Read the key that signs.

    Args:
        path: PEM file.
        password: of an encrypted file; None for `$DEPLOYKIT_KEY_PASSWORD`.
    Raises:
        UsageError: no such file, no private key, of another kind, or the password is wrong or missing.
        MissingDependencyError: `cryptography` is not installed.
    """
    require("cryptography", extra="trust", purpose=_PURPOSE)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    data, given = _read(path), password if password is not None else os.environ.get(PASSWORD)
    try:
        key = serialization.load_pem_private_key(data, given.encode() if given and b"ENCRYPTED" in data else None)
    except TypeError as error:
        hint = f"set {PASSWORD}, or pass a key that is not encrypted"
        raise UsageError(f"{path} is encrypted, and no password is given", hint=hint) from error
    except Exception as error:  # the parser's errors have no common base
        message = f"{path} is no private key that can be read, or its password is wrong"
        raise UsageError(message, hint=f"one is made by: {MAKE_KEY}") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise UsageError(f"{path} holds a key of another kind than an elliptic curve", hint=MAKE_KEY)
    return PrivateKey(_public(Path(path).name, key.public_key()), key)


def read_public_key(path: str | Path) -> PublicKey:
    """Read the key that signatures are checked with.

    Args:
        path: PEM file.
    Raises:
        UsageError: no such file, a private key, or a key of another kind.
        MissingDependencyError: `cryptography` is not installed.
    """
    require("cryptography", extra="trust", purpose=_PURPOSE)
    from cryptography.hazmat.primitives import serialization

    data = _read(path)
    if b"PRIVATE KEY" in data:
        hint = f"pass the public one: openssl ec -in {path} -pubout -out pub.pem"
        raise UsageError(f"{path} is a private key, which nobody but the signer should have", hint=hint)
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:  # the parser's errors have no common base
        raise UsageError(f"{path} is no public key that can be read", hint=f"one is made by: {MAKE_KEY}") from error
    return _public(Path(path).name, key)


def _read(path: str | Path) -> bytes:
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r} is no path: it has a NUL character")
    return read_bytes(Path(path), limit=_LARGEST_BYTES, links=True, error=UsageError)


def _public(name: str, key: object) -> PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, EllipticCurvePublicKey):
        raise UsageError(f"{name} holds a key of another kind than an elliptic curve", hint=MAKE_KEY)
    _hash_of(key)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(name, hashlib.sha256(pem).hexdigest(), key)


def _hash_of(key: EllipticCurvePublicKey) -> HashAlgorithm:
    """The hash that goes with a curve, as Sigstore's bundles pair them."""
    from cryptography.hazmat.primitives import hashes

    known: dict[str, HashAlgorithm] = {
        "secp256r1": hashes.SHA256(),
        "secp384r1": hashes.SHA384(),
        "secp521r1": hashes.SHA512(),
    }
    if key.curve.name not in known:
        raise UsageError(f"keys of the curve {key.curve.name} are not of the format", hint=MAKE_KEY)
    return known[key.curve.name]
