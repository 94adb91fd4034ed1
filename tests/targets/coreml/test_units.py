"""Estimates by compute unit: computed by hand from rates and sources that the device table gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversions import NEEDS_COREMLTOOLS

import deploykit
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.precision import Evidence
from deploykit.judge.profiling import rounded
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.registry import resolve
from deploykit.testing import models
from deploykit_targets.coreml.units import estimated

pytestmark = NEEDS_COREMLTOOLS
MACS, WEIGHTS = 10**9, 10**6


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model, example = models.mlp()
    folder = tmp_path_factory.mktemp("units") / "out"
    return deploykit.export(
        model, "ipad-m4", "fp16", example_inputs=example, output=folder, profile=False, progress=False
    )


def made(exported: Artifact, precision: str, counted: str, units: str = "all") -> Artifact:
    """The artifact with one layer of a known size."""
    layer = LayerAchieved("linear", "", "linear", counted, MACS, WEIGHTS, "")
    manifest = exported.manifest
    return Artifact(
        exported.path,
        replace(
            manifest,
            precision=deploykit.Precision(precision),
            achieved=Achieved.count(precision, [layer], source="test"),
            options={**manifest.options, "compute_units": units},
            metadata={**manifest.metadata, "traffic": {"linear": [0, 0]}},
        ),
    )


def profile(artifact: Artifact, target: str = "ipad-m4", baseline: Any = None) -> Any:
    return estimated(artifact, resolve(target).device, baseline)


def test_each_unit_has_its_rate_and_the_fastest_counts(exported: Artifact) -> None:
    found = profile(made(exported, "fp16", "float16"))
    by_engine, by_gpu, by_cpu = (2 * MACS / (tops * 1e12) * 1e3 for tops in (38.0, 2.9, 2.36))
    assert found.evidence is Evidence.ESTIMATE
    assert found.latency_ms.p50 == rounded(by_engine)
    said = " ".join(found.notes)
    assert f"Neural Engine {by_engine:.2g} ms, GPU {by_gpu:.2g} ms, CPU {by_cpu:.2g} ms" in said
    assert "Apple press release on M4" in said


@pytest.mark.parametrize(
    ("units", "precision", "counted", "tops", "source"),
    [
        ("cpu-only", "fp16", "float16", 2.36, "m4-sme-exploration"),
        ("cpu-only", "int8", "int8", 4.7, "m4-sme-exploration"),
        ("cpu-and-gpu", "fp16", "float16", 2.9, "arXiv 2502.05317"),
        ("cpu-and-neural-engine", "int8", "int8", 38.0, "press release"),
        ("all", "fp32", "float32", 2.9, "arXiv 2502.05317"),  # the Neural Engine has no float32
        ("cpu-only", "int8-weight-only", "int8", 2.36, "m4-sme-exploration"),  # products are float16
    ],
)
def test_options_and_precision_choose(
    exported: Artifact, units: str, precision: str, counted: str, tops: float, source: str
) -> None:
    found = profile(made(exported, precision, counted, units))
    assert found.latency_ms.p50 == rounded(2 * MACS / (tops * 1e12) * 1e3)
    assert source in " ".join(found.notes)


def test_compressed_weights_count_with_their_bits(exported: Artifact) -> None:
    """Where nothing is multiplied, the weights' bytes over 120 GB/s are the whole time."""
    for precision, counted, bits in (("int4-palette", "4-bit palette", 4), ("int8-weight-only", "int8", 8)):
        artifact = made(exported, precision, counted)
        layers = [replace(layer, macs=0) for layer in artifact.achieved.layers]
        manifest = replace(artifact.manifest, achieved=Achieved.count(precision, layers, source="test"))
        found = profile(Artifact(artifact.path, manifest))
        assert found.latency_ms.p50 == rounded(WEIGHTS * bits / 8 / 120e9 * 1e3)


def test_a_float_baseline_is_estimated_where_it_can_run(exported: Artifact) -> None:
    found = profile(made(exported, "fp16", "float16"), baseline=("fp32", made(exported, "fp32", "float32")))
    assert found.baseline_latency_ms.p50 == rounded(2 * MACS / 2.9e12 * 1e3)
    assert found.worth_it == rounded(38.0 / 2.9)


def test_what_is_not_published_is_left_out_and_named(exported: Artifact) -> None:
    found = profile(made(exported, "fp16", "float16"), "iphone-15")
    assert "no published rates of: CPU" in found.notes
    assert profile(made(exported, "fp16", "float16", "cpu-only"), "iphone-15") is None
    for target in ("coreml", "iphone-17-pro", "macbook-m3"):
        assert profile(made(exported, "fp16", "float16"), target) is None
    assert profile(made(exported, "fp32", "float32", "cpu-and-neural-engine"), "iphone-15") is None


def test_every_rate_names_its_source() -> None:
    for device in resolve("coreml").target.capabilities().devices.values():
        for unit, rates in device.extra.get("units", {}).items():
            assert unit in ("GPU", "CPU") and len(str(rates["source"])) > 40
            assert all(float(rate) > 0 for name, rate in rates.items() if name != "source")


def test_a_profile_says_so(exported: Artifact, tmp_path: Path) -> None:
    del tmp_path
    found = resolve("ipad-m4").target.profile(exported)
    assert found.evidence is Evidence.ESTIMATE and any("estimates by unit" in note for note in found.notes)
