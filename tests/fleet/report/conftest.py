"""Artifacts and profiles as plain values: a report needs no framework, no runtime and no payload that runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploykit.artifact.manifest import FileEntry, Manifest
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.host import Host
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.recipe import ModelIdentity, Recipe
from deploykit.contract.session import OpTime
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.parity import LayerParity, Link, Metrics, ParityReport, TaskMetric, Tolerance
from deploykit.judge.profiling import Percentiles, Profile, Times
from deploykit.judge.spread import Spread

HOST = Host("x86_64", ("avx2", "avx512_vnni"), 2, "Linux")


def runs(seed: int, milliseconds: float = 1.0, count: int = 100) -> tuple[float, ...]:
    """Runs as a shared machine gives them: a floor, a little noise, and now and then something else in the way."""
    generator = np.random.default_rng(seed)
    noise = generator.gamma(2.0, 0.006, count) + (generator.random(count) < 0.1) * generator.exponential(1.0, count)
    return tuple((milliseconds * (1.0 + noise)).tolist())


def profile(
    times: Sequence[float],
    baseline: Sequence[float] = (),
    *,
    evidence: Evidence = Evidence.DEVICE,
    host: Host = HOST,
    op_times: tuple[OpTime, ...] = (),
    kept: bool = True,
    baseline_fingerprint: str = "",
) -> Profile:
    return Profile(
        latency_ms=Percentiles.of(times),
        batch_size=1,
        throughput_per_s=1e3 / float(np.mean(times)),
        throughput_by_batch={"1": 1e3 / float(np.mean(times))},
        peak_memory_bytes=32_000_000,
        size_bytes=20_000,
        evidence=evidence,
        threads=2,
        warm_up=5,
        runs=len(times),
        host=host,
        op_times=op_times,
        baseline="fp32 artifact" if baseline else "",
        baseline_latency_ms=Percentiles.of(baseline) if baseline else None,
        baseline_size_bytes=80_000 if baseline else None,
        times=Times.of(times, baseline) if kept else None,
        baseline_fingerprint=baseline_fingerprint,
    )


def parity(
    layers: Sequence[str],
    sqnr_db: float = 40.0,
    *,
    evidence: Evidence = Evidence.DEVICE,
    metric: TaskMetric | None = None,
    samples: int = 16,
    noise_db: Sequence[float] | None = None,
) -> ParityReport:
    each = tuple(sorted(noise_db or (sqnr_db + np.linspace(-1.0, 1.0, samples)).tolist()))
    worst = Metrics(sqnr_db, 0.9999, 0.01, 1.0, spread=Spread(sqnr_db - 1.0, sqnr_db + 1.0, samples, each))
    heard = [LayerParity(name, name, "conv", round(sqnr_db - 5.0 + (i * 7 % 11), 1)) for i, name in enumerate(layers)]
    return ParityReport(
        passed=True,
        evidence=evidence,
        sqnr_db=sqnr_db,
        cosine=0.9999,
        max_abs=0.01,
        top1_agreement=1.0,
        chain=(Link("float PyTorch", "artifact", evidence, worst, {"output": worst}),),
        layers=tuple(sorted(heard, key=lambda layer: layer.sqnr_db)),
        failures=(),
        tolerance=Tolerance(min_sqnr_db=20.0),
        samples=samples,
        data="held-out calibration data",
        host=HOST,
        metric=metric,
    )


def manifest(
    layers: Sequence[str] = ("stem", "body.0", "head"),
    *,
    target: str = "x86-cpu",
    precision: str = "int8",
    size: int = 20_000,
    left: Sequence[str] = (),
    report: ParityReport | None = None,
    status: str = "verified",
    reason: str = "it is a norm",
    model: str = "net",
) -> Manifest:
    """Of an artifact in which every layer is `precision` but those `left` in float32."""
    counted = [
        LayerAchieved(
            name, name, "conv", "float32" if name in left else precision, 1000 * (i + 1), 10, reason * (name in left)
        )
        for i, name in enumerate(layers)
    ]
    spec = TensorSpec("x", (1, 3), "float32")
    return Manifest(
        deploykit_version="0.1.0",
        target=target,
        toolchain="onnxruntime",
        device=target.partition(":")[0],
        precision=Precision(precision),
        status=status,
        entry="model.onnx",
        inputs=(spec,),
        outputs=(spec,),
        files=(FileEntry("model.onnx", size, hashlib.sha256(b"").hexdigest()),),
        achieved=Achieved.count(precision, counted, source="the file"),
        tool_versions={"onnxruntime": "1.31.1"},
        fingerprints={"model": hashlib.sha256(model.encode()).hexdigest()},
        parity=report or parity(layers),
        recipe=Recipe(target, precision, "s8", ModelIdentity(model, graph=model, fingerprint=model)),
    )


def write(folder: Path, of: Manifest, measured: Profile | None = None) -> Path:
    """What a report reads of an artifact: manifest and profile."""
    folder.mkdir(parents=True, exist_ok=True)
    data = of.to_json()
    (folder / "manifest.json").write_bytes(data)
    if measured is not None:
        record = {"artifact": hashlib.sha256(data).hexdigest(), "profile": measured}
        (folder / "profile.json").write_bytes(msgspec.json.encode(record))
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[..., Path]:
    """`artifact("name", manifest(), profile(...))` writes one below the test's folder."""
    return lambda name, of=None, measured=None: write(tmp_path / name, of or manifest(), measured)
