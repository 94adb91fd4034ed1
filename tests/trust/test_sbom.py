"""Bills of materials: valid by CycloneDX's own strict schema, complete, and the same for the same artifact."""

import json

import pytest

import deploykit
from deploykit.contract.errors import ArtifactError
from deploykit_trust.sbom import sbom
from deploykit_trust.signing import sign


def mistakes(document):
    pytest.importorskip("cyclonedx", reason="the tox environment `trust` has CycloneDX's schema")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))


@pytest.mark.parametrize("signed", [False, True])
def test_it_is_valid_and_says_what_the_manifest_says(artifact, keys, signed):
    if signed:
        sign(artifact, keys["private"])
    found, manifest = sbom(artifact), deploykit.load(artifact).manifest
    assert mistakes(found) is None
    component = found["metadata"]["component"]
    assert component["hashes"][0]["content"] == deploykit.load(artifact).fingerprint
    hashed = {one["name"]: one["hashes"][0]["content"] for one in found["components"] if one["type"] == "file"}
    assert hashed == {entry.path: entry.sha256 for entry in manifest.files}
    assert [one["purl"] for one in found["components"] if one["type"] == "library"] == ["pkg:pypi/toy@1.0"]
    metrics = {one["type"]: one for one in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["sqnr_db"]["value"] == "34.5" and "evidence: device" in metrics["sqnr_db"]["slice"]
    assert metrics["latency_ms_p50"]["value"] == "1.25"
    assert component["modelCard"]["modelParameters"]["inputs"] == [{"format": "x: float32[1, 4]"}]
    assert [one["url"] for one in component.get("externalReferences", ())] == (
        ["model.sig", "lineage.sigstore.json"] if signed else []
    )


def test_made_up_data_a_parent_and_a_local_version_are_told(toy, tmp_path):
    made_up = deploykit.load(toy.write_artifact(tmp_path / "a").path).manifest.calibration
    from dataclasses import replace

    changes = {"calibration": replace(made_up, source="synthetic"), "parent": "3" * 64, "status": "failed"}
    toy.write_artifact(tmp_path / "net", tool_versions={"torch": "2.13.0+cpu", "ai_edge_litert": "2.3"}, **changes)
    found = sbom(tmp_path / "net")
    assert mistakes(found) is None
    assert found["metadata"]["component"]["pedigree"]["ancestors"][0]["hashes"][0]["content"] == "3" * 64
    told = {one["bom-ref"]: one for one in found["components"]}
    assert told["tool:torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert told["tool:ai_edge_litert"]["purl"] == "pkg:pypi/ai-edge-litert@2.3"
    assert "made up and not real" in told["calibration"]["description"]


def test_an_artifact_with_nothing_measured(toy, tmp_path):
    toy.write_artifact(tmp_path / "net", parity=None, calibration=None)
    found = sbom(tmp_path / "net")
    assert mistakes(found) is None
    assert "quantitativeAnalysis" not in found["metadata"]["component"]["modelCard"]
    assert "calibration" not in {one["bom-ref"] for one in found["components"]}


def test_the_same_artifact_gives_the_same_document(artifact):
    assert sbom(artifact) == sbom(artifact)


def test_what_is_damaged_or_not_signed_is_not_described(artifact, keys):
    with pytest.raises(ArtifactError, match="is not signed"):
        sbom(artifact, key=keys["public"])
    (artifact / "matrix.npy").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="truncated or altered"):
        sbom(artifact)
