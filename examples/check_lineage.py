"""Check where an artifact comes from as an auditor does: with its public key, `cryptography`, and no deploykit.

python examples/check_lineage.py out/net pub.pem

Every line that is printed is signed. The last step compares the manifest that lies there with the one that was signed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}


def signed_statement(bundle: bytes, public_key: bytes) -> dict[str, Any]:
    """The statement of a bundle, if the key has signed it; else `InvalidSignature`."""
    envelope = json.loads(bundle)["dsseEnvelope"]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    key = serialization.load_pem_public_key(public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message, ec.ECDSA(_HASHES[key.curve.name]()))
    found: dict[str, Any] = json.loads(payload)
    return found


def main(artifact: str, public_key: str) -> None:
    """Print what went into an artifact, and whether it is the one that the statement is about."""
    bundle = Path(artifact, "lineage.sigstore.json").read_bytes()
    statement = signed_statement(bundle, Path(public_key).read_bytes())
    definition = statement["predicate"]["buildDefinition"]
    for name, value in definition["externalParameters"].items():
        print(f"{name}: {value}")
    for one in definition["resolvedDependencies"]:
        ((kind, digest),) = one["digest"].items()
        print(f"{one['name']}: {kind} {digest} {one.get('uri', '')} {one.get('annotations', '')}".rstrip())
    for name, version in definition["internalParameters"]["tools"].items():
        print(f"made with {name} {version}")
    there = hashlib.sha256(Path(artifact, "manifest.json").read_bytes()).hexdigest()
    if there != statement["subject"][0]["digest"]["sha256"]:
        raise SystemExit(f"{artifact} is not the artifact that this statement is about")
    print(f"this is it: manifest.json is {there}")


if __name__ == "__main__":
    main(*sys.argv[1:])
