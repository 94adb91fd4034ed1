"""Where an artifact comes from, as a signed statement that others read: SLSA provenance 1.0 about its manifest.

It says source commit, model, recipe, calibration, tool versions and parent artifact, each by its hash, and follows
from the manifest but for the commit and the signer. So whoever has the artifact and the public key can check it
offline, with this module or with any reader of in-toto statements; `deploykit verify --key` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.artifact import manifest as layout
from deploykit.contract.errors import ArtifactError
from deploykit.contract.reading import decode_json, read_bytes
from deploykit_trust import envelope
from deploykit_trust.source import Source

if TYPE_CHECKING:
    from deploykit.artifact.manifest import Manifest
    from deploykit.artifact.store import StoredArtifact
    from deploykit_trust.keys import PublicKey

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:deploykit:lineage:1"
_SOURCE = "source"
_AGAIN = "sign the artifact again"


class Lineage(msgspec.Struct, frozen=True):
    """What a lineage statement says.

    Attributes:
        artifact: sha256 of the manifest, the artifact's fingerprint.
        commit, url, dirty: of the checkout that it was signed in; "" where none was recorded.
        model, recipe, calibration: fingerprints; "" where there is none.
        parent: fingerprint of the artifact that this one was built from; "" for none.
        tools: distributions that took part, with versions.
    """

    artifact: str
    commit: str
    url: str
    dirty: bool
    model: str
    recipe: str
    calibration: str
    parent: str
    tools: dict[str, str]


def lineage_statement(artifact: StoredArtifact, source: Source | None) -> dict[str, Any]:
    """The statement about an artifact.

    Args:
        source: of the checkout that it is signed in; None for none.
    """
    manifest, digest = artifact.manifest, artifact.manifest_digest
    return {
        "_type": envelope.STATEMENT_TYPE,
        "subject": [{"name": layout.MANIFEST_NAME, "digest": {"sha256": digest}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": _definition(manifest, source),
            "runDetails": {"builder": {"id": BUILD_TYPE, "version": {"deploykit": manifest.deploykit_version}}},
        },
    }


def _definition(manifest: Manifest, source: Source | None) -> dict[str, Any]:
    """What went in; all but the source is the manifest's own word."""
    dependencies = list(_dependencies(manifest))
    if source is not None:
        kind = "gitCommit" if len(source.commit) == 40 else "gitCommitSha256"
        uri = {"uri": source.url} if source.url else {}
        facts = {"dirty": source.dirty, "recorded": "of the checkout that the artifact was signed in"}
        dependencies.insert(0, {"name": _SOURCE, **uri, "digest": {kind: source.commit}, "annotations": facts})
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "target": manifest.target,
            "device": manifest.device,
            "precision": manifest.precision.value,
            "options": manifest.options,
        },
        "internalParameters": {"toolchain": manifest.toolchain, "tools": dict(sorted(manifest.tool_versions.items()))},
        "resolvedDependencies": dependencies,
    }


def _dependencies(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for name, digest in _prints(manifest).items():
        if digest:
            yield {"name": name, "digest": {"sha256": digest}, **_annotations(name, manifest)}


def _annotations(name: str, manifest: Manifest) -> dict[str, Any]:
    """Whether calibration data was real, and how much of it there was."""
    found = manifest.calibration
    if name != "calibration" or found is None:
        return {}
    return {"annotations": {"source": found.source, "samples": found.samples, "method": found.method}}


def _prints(manifest: Manifest) -> dict[str, str]:
    """Fingerprints of what went in; "" for what did not."""
    known, calibrated = manifest.fingerprints, manifest.calibration
    return {
        "model": known.get("model", ""),
        "recipe": known.get("recipe", ""),
        "calibration": known.get("calibration", calibrated.fingerprint if calibrated else ""),
        "parent": manifest.parent,
    }


def read_lineage(artifact: StoredArtifact, key: PublicKey) -> Lineage | None:
    """The lineage that lies in an artifact, checked; None where there is none (another tool signed it).

    Raises:
        ArtifactError: it is not signed by the key, is of another artifact, or says otherwise than the manifest.
    """
    path = artifact.path / layout.LINEAGE_NAME
    if not path.is_file():
        return None
    data = read_bytes(path, limit=envelope.LARGEST_BYTES)
    found = decode_json(
        envelope.opened(data, key, what=path.name), dict[str, Any], what=f"the statement of {path.name}", hint=_AGAIN
    )
    source = _source_in(found)
    if found != lineage_statement(artifact, source):
        message = f"{path.name} is of another artifact, or says otherwise than {layout.MANIFEST_NAME}"
        raise ArtifactError(message, hint=_AGAIN)
    return _told(artifact, source)


def _source_in(statement: dict[str, Any]) -> Source | None:
    """The one part of a statement that the manifest does not say."""
    try:
        first = statement["predicate"]["buildDefinition"]["resolvedDependencies"][0]
        if first["name"] != _SOURCE:
            return None
        (commit,) = first["digest"].values()
        return Source(str(commit), str(first.get("uri", "")), bool(first["annotations"]["dirty"]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None  # the comparison with what it must be says the rest


def _told(artifact: StoredArtifact, source: Source | None) -> Lineage:
    return Lineage(
        artifact=artifact.manifest_digest,
        commit=source.commit if source else "",
        url=source.url if source else "",
        dirty=source.dirty if source else False,
        tools=dict(artifact.manifest.tool_versions),
        **_prints(artifact.manifest),
    )
