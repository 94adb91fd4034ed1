"""`deploykit.sbom`: what an artifact consists of and what it can do, as a CycloneDX 1.6 document with a model card.

It says what the manifest says, each figure with its evidence, and nothing more: licences, intended use and ethics are
not known here and are left to you. The same artifact gives the same document, so it has no time in it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deploykit._version import __version__
from deploykit.artifact import manifest as layout
from deploykit.artifact.storage import sha256_of
from deploykit.plugin.artifact import Artifact, load

if TYPE_CHECKING:
    from deploykit.contract.tensors import TensorSpec

Document = dict[str, Any]
_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_MODEL = "model"


def sbom(path: str | Path, *, key: str | Path | None = None) -> Document:
    """Describe an artifact.

    Args:
        path: its folder; every hash is checked first.
        key: PEM file of a public key that must have signed it; None asks for no signature.
    Returns:
        A CycloneDX 1.6 document, ready for `json.dumps`.
    Raises:
        ArtifactError, UsageError, MissingDependencyError: as `deploykit.load`.
    """
    artifact = load(path, key=key)
    files, tools = list(_files(artifact)), list(_tools(artifact))
    return {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'urn:sha256:{artifact.manifest_digest}')}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "deploykit", "version": __version__}]},
            "component": _component(artifact),
        },
        "components": [*files, *_dataset(artifact), *tools],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [one["bom-ref"] for one in (*files, *tools)]},
            *({"ref": one["bom-ref"]} for one in (*files, *tools)),
        ],
    }


def _component(artifact: Artifact) -> Document:
    manifest = artifact.manifest
    found: Document = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": artifact.path.name,
        "version": artifact.manifest_digest[:12],
        "description": f"{manifest.precision.value} for {manifest.target}, {manifest.status}",
        "hashes": [_hash(artifact.manifest_digest)],
        "modelCard": _card(artifact),
        "properties": list(_properties(artifact)),
    }
    references = list(_references(artifact.path))
    if references:
        found["externalReferences"] = references
    if manifest.parent:
        ancestor = {"type": "machine-learning-model", "name": "portable artifact", "hashes": [_hash(manifest.parent)]}
        found["pedigree"] = {"ancestors": [ancestor]}
    return found


def _hash(digest: str) -> Document:
    return {"alg": "SHA-256", "content": digest}


def _references(folder: Path) -> Iterator[Document]:
    """Signature and lineage, where they lie beside the files."""
    for kind, name in (("digital-signature", layout.SIGNATURE_NAME), ("attestation", layout.LINEAGE_NAME)):
        if (folder / name).is_file():
            yield {"type": kind, "url": name, "hashes": [_hash(sha256_of(folder / name))]}


def _properties(artifact: Artifact) -> Iterator[Document]:
    manifest = artifact.manifest
    told = {
        "fingerprint": artifact.manifest_digest,
        "toolchain": manifest.toolchain,
        "device": manifest.device,
        "precision": manifest.precision.value,
        "status": manifest.status,
        "evidence": artifact.evidence.value,
        **{f"fingerprint:{name}": digest for name, digest in sorted(manifest.fingerprints.items())},
        **{f"requires:{name.replace(' ', '-')}": text for name, text in artifact.requirements.rows()},
    }
    yield from ({"name": f"deploykit:{name}", "value": text} for name, text in told.items() if text)


def _card(artifact: Artifact) -> Document:
    manifest = artifact.manifest
    parameters: Document = {
        "inputs": [{"format": _format(spec)} for spec in manifest.inputs],
        "outputs": [{"format": _format(spec)} for spec in manifest.outputs],
    }
    if manifest.calibration is not None:
        parameters["datasets"] = [{"ref": "calibration"}]
    found: Document = {"modelParameters": parameters}
    metrics = list(_metrics(artifact))
    if metrics:
        found["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    limits = [*manifest.facts.notes, *(manifest.parity.failures if manifest.parity else ())]
    if limits:
        found["considerations"] = {"technicalLimitations": limits}
    return found


def _format(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype}[{', '.join(map(str, spec.shape))}]"


def _metrics(artifact: Artifact) -> Iterator[Document]:
    """Parity and speed, each with where it was obtained."""
    parity, profile = artifact.manifest.parity, artifact.profile
    if parity is not None:
        where = f"{parity.samples} samples, {parity.data}; evidence: {parity.evidence.value}"
        for name in ("sqnr_db", "cosine", "max_abs", "top1_agreement"):
            value = getattr(parity, name)
            if value is not None:
                yield {"type": name, "value": f"{value:.6g}", "slice": where}
    if profile is not None:
        where = f"batch {profile.batch_size}, {profile.threads} threads, {profile.host}; {profile.evidence.value}"
        for name in ("p50", "p90", "p99"):
            yield {"type": f"latency_ms_{name}", "value": f"{getattr(profile.latency_ms, name):.6g}", "slice": where}


def _files(artifact: Artifact) -> Iterator[Document]:
    for entry in artifact.manifest.files:
        yield {
            "type": "file",
            "bom-ref": f"file:{quote(entry.path)}",
            "name": entry.path,
            "hashes": [_hash(entry.sha256)],
            "properties": [{"name": "deploykit:size_bytes", "value": str(entry.size)}],
        }


def _dataset(artifact: Artifact) -> Iterator[Document]:
    """What the ranges were taken from: told by a fingerprint, never by its content."""
    found = artifact.manifest.calibration
    if found is None:
        return
    made_up = "" if found.source == "data" else ", made up and not real"
    yield {
        "type": "data",
        "bom-ref": "calibration",
        "name": "calibration data",
        "description": f"{found.samples} samples{made_up}; ranges by {found.method}",
        "data": [{"type": "dataset", "name": "calibration data"}],
        "properties": [{"name": "deploykit:fingerprint", "value": found.fingerprint}],
    }


def _tools(artifact: Artifact) -> Iterator[Document]:
    """Distributions that took part in making it, which it does not contain."""
    for name, version in sorted(artifact.manifest.tool_versions.items()):
        project = name.lower().replace("_", "-")
        yield {
            "type": "library",
            "bom-ref": f"tool:{name}",
            "name": name,
            "version": version,
            "scope": "excluded",
            "purl": f"pkg:pypi/{quote(project)}@{quote(version)}",
        }
