"""A toolchain in pure NumPy for tests of the core: the payload is a matrix, a session multiplies by it.

Registered by a `.dist-info` folder that the fixtures of `tests/core/conftest.py` write beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.artifact import manifest as layout
from deploykit.artifact.golden import Golden, golden_bytes
from deploykit.artifact.manifest import CalibrationInfo, FileEntry, Manifest
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.devices import Device
from deploykit.contract.errors import ConversionError
from deploykit.contract.host import Host
from deploykit.contract.optional import Requirement, SystemTool
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.parity import LayerParity, Link, Metrics, ParityReport, tolerance_of
from deploykit.judge.profiling import Percentiles, Profile
from deploykit.pipeline.staging import list_files
from deploykit.plugin.artifact import Artifact, load
from deploykit.plugin.target import Capabilities, Payload, Target

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
HOST = Host("toy64", ("toy_vnni",), 2, "ToyOS")
BOARD = Device("toy-board", "toy", "a board that multiplies", "toy64", (Precision.INT8, Precision.FP32), default=True)
OLD_BOARD = Device("toy-old", "toy", "a board without int8", "toy32", (Precision.FP32,), generic=True)


@dataclass(frozen=True)
class ToyOptions:
    """Options of the toy toolchain."""

    gain: float = 1.0
    labels: list[str] = field(default_factory=list)


class MatrixSession(Session):
    def __init__(self, matrix: np.ndarray, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        self._matrix = matrix

    def _run(self, feeds: Any) -> dict[str, np.ndarray]:
        print("the runtime talks on standard output")
        return {"output": feeds["x"] @ self._matrix}

    def _op_times(self, feeds: Any, runs: int) -> tuple[OpTime, ...]:
        return (OpTime("matmul", "MatMul", "fc", 1.5),)


class ToyTarget(Target):
    name = "toy"
    options_type = ToyOptions

    def capabilities(self) -> Capabilities:
        return Capabilities(
            summary="multiplies",
            precisions=(Precision.INT8, Precision.FP32),
            devices={device.name: device for device in (BOARD, OLD_BOARD)},
            export_extra="",
            runtime_extra="",
            export_requires=(),
            runtime_requires=(),
            distribution="toy-plugin",
            system_tools=(
                SystemTool("sh", "dash", "start things"),
                SystemTool("no-such-program-of-toy", "toy-package", "cross things"),
            ),
        )

    def lower(self, prepared: Any, folder: Path) -> Payload:
        raise ConversionError("the toy converts nothing")

    def _build(self, artifact: Artifact, folder: Path, options: Any) -> Payload:
        np.save(folder / "built.npy", np.load(artifact.entry) * np.float32(options.gain))
        return Payload("built.npy", artifact.achieved, {"toy-compiler": "2.0"}, log="built")

    def _open(self, artifact: Artifact, threads: int) -> Session:
        return MatrixSession(np.load(artifact.entry, allow_pickle=False), artifact, threads)


class AbsentTarget(ToyTarget):
    """Its packages are not installed."""

    name = "absent"

    def capabilities(self) -> Capabilities:
        return replace(
            super().capabilities(),
            devices={"absent-board": replace(BOARD, name="absent-board", toolchain="absent")},
            export_extra="absent",
            runtime_extra="absent-runtime",
            export_requires=(Requirement("no_such_module_of_toy", "no-such-module"),),
            runtime_requires=(Requirement("no_such_module_of_toy", "no-such-module"),),
            system_tools=(),
        )


class RivalTarget(ToyTarget):
    """Claims the toy's board as its own."""

    name = "rival"


class UnreadyTarget(ToyTarget):
    """Does not even construct."""

    name = "unready"

    def __init__(self) -> None:
        raise RuntimeError("its [bracketed] licence has expired")


NOT_A_TARGET = dict

INPUTS = (TensorSpec("x", (1, 4), "float32"),)
OUTPUTS = (TensorSpec("output", (1, 3), "float32"),)


def write_artifact(folder: Path, *, profile: Profile | None = None, **changes: Any) -> Artifact:
    """Write a whole artifact by hand: two golden samples, a verified int8 manifest; `changes` replace its fields."""
    folder.mkdir(parents=True)
    np.save(folder / "matrix.npy", MATRIX)
    inputs = tuple({"x": np.full((1, 4), value, np.float32)} for value in (1.0, -2.0))
    outputs = tuple({"output": feeds["x"] @ MATRIX} for feeds in inputs)
    (folder / layout.GOLDEN_NAME).write_bytes(golden_bytes(Golden(inputs, outputs)))
    manifest = replace(make_manifest(list_files(folder)), **changes)
    (folder / layout.MANIFEST_NAME).write_bytes(manifest.to_json())
    artifact = load(folder, allow_native=True)
    if profile is not None:
        artifact.save_profile(profile)
    return artifact


def make_manifest(files: tuple[FileEntry, ...] = ()) -> Manifest:
    layers = (
        LayerAchieved("fc", "fc", "linear", "int8", macs=90, weights=9),
        LayerAchieved("head", "head", "linear", "float32", macs=10, weights=3, reason="excluded by pattern [head]"),
    )
    return Manifest(
        deploykit_version="0.1.0",
        target="toy-board",
        toolchain="toy",
        device="toy-board",
        precision=Precision.INT8,
        status=layout.VERIFIED,
        entry="matrix.npy",
        inputs=INPUTS,
        outputs=OUTPUTS,
        files=files,
        achieved=Achieved.count("int8", layers, source="the toy's graph", notes=["counted by hand"]),
        tool_versions={"toy": "1.0"},
        fingerprints={"model": "0" * 64, "recipe": "1" * 64},
        parity=make_parity(),
        calibration=CalibrationInfo("data", 16, "default", "2" * 64),
        options={"gain": 1.0},
    )


def make_parity(**changes: Any) -> ParityReport:
    figures = Metrics(34.5, 0.9991, 0.02, 0.98)
    report = ParityReport(
        passed=True,
        evidence=Evidence.DEVICE,
        sqnr_db=figures.sqnr_db,
        cosine=figures.cosine,
        max_abs=figures.max_abs,
        top1_agreement=figures.top1_agreement,
        chain=(Link("float PyTorch", "artifact", Evidence.DEVICE, figures, {"output": figures}),),
        layers=(LayerParity("fc", "fc", "linear", 31.25), LayerParity("relu", "", "relu", 40.0)),
        failures=(),
        tolerance=tolerance_of(Precision.INT8),
        samples=8,
        data="calibration data",
        host=HOST,
    )
    return replace(report, **changes)


def make_profile(**changes: Any) -> Profile:
    profile = Profile(
        latency_ms=Percentiles(1.25, 1.5, 2.0, 1.3, 1.2),
        batch_size=1,
        throughput_per_s=800.0,
        throughput_by_batch={"1": 800.0},
        peak_memory_bytes=5_000_000,
        size_bytes=1234,
        evidence=Evidence.DEVICE,
        threads=2,
        warm_up=5,
        runs=100,
        host=HOST,
        op_times=(OpTime("matmul", "MatMul", "fc", 950.0),),
        baseline="fp32 artifact",
        baseline_latency_ms=Percentiles(2.5, 3.0, 4.0, 2.6, 2.4),
        baseline_size_bytes=4321,
    )
    return replace(profile, **changes)
