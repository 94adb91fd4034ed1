"""A checked ONNX file and the build program that finishes it on the device, as an artifact that waits for its build."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deploykit.artifact.golden import golden_tolerance
from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.errors import DeviceError, MissingDependencyError
from deploykit.contract.host import this_host
from deploykit.contract.optional import versions
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.reading import read_json
from deploykit.contract.requirements import Requirements
from deploykit.plugin.target import Payload
from deploykit_targets._on_device import board
from deploykit_targets._on_device.host import run_build_program

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.tensors import TensorSpec
    from deploykit_calibration.prepared import Prepared
    from deploykit_targets._onnx.explicit import Explicit

MODEL, BLUEPRINT, TABLE, REPORT = "model.onnx", "blueprint.json", "calibration.safetensors", "build.json"
COMMAND = "deploykit build ."
_LARGEST_SIZE = 2**31 - 1  # of an axis in TensorRT and MIGraphX
# ONNX operators that multiply and accumulate, as they are written into the names of nodes: `linear.matmul_1`. Of a
# recurrent one a compiler may name only what it made of its gates, and not the products of each step.
_MULTIPLIES = frozenset({"conv", "convtranspose", "einsum", "gemm", "gru", "lstm", "matmul", "rnn"})


def portable(
    prepared: Prepared,
    folder: Path,
    made: Explicit,
    program: ModuleType,
    options: Mapping[str, Any],
    notes: Sequence[str] = (),
    golden_db: float | None = None,
    more: Mapping[str, Any] | None = None,
) -> Payload:
    """Write ONNX file, calibration table, blueprint and build program into the folder.

    Args:
        made: the lowered and linted model.
        program: module of the toolchain's build program; it is copied, with `board.py`.
        options: the options of the build, as the build program's command line takes them.
        notes: what a reader of blueprint, manifest or parity report must know of this file on this device.
        golden_db: SQNR of golden outputs on the device from which they count as reproduced; None for the precision's.
        more: what else this toolchain's program reads in `blueprint.json`.
    """
    (folder / MODEL).write_bytes(made.model.SerializeToString(deterministic=True))
    for module in (program, board):
        source = Path(str(module.__file__))
        shutil.copyfile(source, folder / source.name)
    _write_blueprint(
        folder, {**_blueprint(prepared, options, notes, golden_db), **_between(prepared, made), **(more or {})}
    )
    if prepared.table is not None:
        prepared.table.save(folder / TABLE)
        (folder / TABLE).chmod(0o644)  # on the board another user reads it
    name = Path(str(program.__file__)).name
    return Payload(
        entry=MODEL,
        achieved=made.achieved,
        tool_versions=versions("torch", "onnx"),
        build=PendingBuild(COMMAND, _reason(prepared, name)),
        log=made.log,
        traffic=_traffic(made),
        golden_min_sqnr_db=golden_db,
        notes=tuple(notes),
        metadata=_linted(made),
    )


def _reason(prepared: Prepared, program: str) -> str:
    return (
        f"{prepared.device.toolchain} compiles on the GPU that it runs on: build it on {prepared.device.name}"
        f" (without deploykit there: python3 {program} in the artifact's folder)"
    )


def _between(prepared: Prepared, made: Explicit) -> dict[str, str]:
    """The type of what is between q/dq nodes of int8, for builders that must be told."""
    return {"between": made.plain} if prepared.precision is Precision.INT8 and made.plain != "float32" else {}


def _noted(notes: Sequence[str]) -> dict[str, Any]:
    return {"notes": list(notes)} if notes else {}


def _blueprint(
    prepared: Prepared, options: Mapping[str, Any], notes: Sequence[str], golden_db: float | None
) -> dict[str, Any]:
    examples = [list(example.shape) for example in prepared.captured.example_inputs]
    return {
        "model": MODEL,
        "device": prepared.device.name,
        "arch": prepared.device.arch,
        "precision": prepared.precision.value,
        "inputs": [
            {**_spec(spec), **_bounds(spec, prepared.captured.symbol_ranges), "example": example}
            for spec, example in zip(prepared.captured.inputs, examples, strict=True)
        ],
        "outputs": [_spec(spec) for spec in prepared.captured.outputs],
        "options": dict(options),
        "tolerance": {"min_sqnr_db": golden_tolerance(prepared.precision, golden_db).min_sqnr_db},
        **_noted(notes),
    }


def _write_blueprint(folder: Path, blueprint: Mapping[str, Any]) -> None:
    (folder / BLUEPRINT).write_text(json.dumps(blueprint, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _bounds(spec: TensorSpec, ranges: Mapping[str, tuple[int, int | None]]) -> dict[str, Any]:
    """Smallest and largest size (or null) of every dynamic axis that has bounds; nothing where none has."""
    found = [_bound(*ranges[size]) if isinstance(size, str) and size in ranges else None for size in spec.shape]
    return {"bounds": found} if any(found) else {}


def _bound(low: int, high: int | None) -> list[int | None] | None:
    """None where nobody asked: PyTorch itself begins at 2, and what no runtime can count to is no end."""
    high = None if high is None or high > _LARGEST_SIZE else high
    return None if low <= 2 and high is None else [low, high]


def _linted(made: Explicit) -> dict[str, Any]:
    found = [str(finding) for finding in made.findings]
    return {
        "lint": {
            "verdict": f"lint against {made.rules.name}: {len(found)} finding(s); operators after {made.rules.source}",
            "findings": found,
        },
    }


def _traffic(made: Explicit) -> dict[str, list[int]]:
    layers = {layer.name for layer in made.achieved.layers}
    return {name: list(counts) for name, counts in made.traffic.items() if name in layers}


def build_from(
    artifact: StoredArtifact,
    folder: Path,
    program: str,
    entry: str,
    *,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    python: str | None,
) -> Payload:
    """Run an artifact's program on this machine; what it builds goes into `folder`, with what is needed to run it.

    Args:
        artifact: the artifact, with the build program.
        folder: takes the built files.
        program: file name of the build program.
        entry: file that the build program builds.
        arguments: the arguments of its command line.
        options: what those arguments stand for; the built artifact's blueprint keeps them.
        python: interpreter that has the vendor's bindings.

    Raises:
        DeviceError, MissingDependencyError, ConversionError: see `host.run_build_program`.
    """
    for name in (program, "board.py", MODEL, TABLE):
        if (artifact.path / name).is_file():
            shutil.copyfile(artifact.path / name, folder / name)
    blueprint = read_json(artifact.path / BLUEPRINT, dict[str, Any], hint="export the model again")
    _write_blueprint(folder, {**blueprint, "options": dict(options)})
    command = ["--out", str(folder), "--runs", "0", *arguments]
    toolchain = artifact.manifest.toolchain
    report = run_build_program(artifact.path / program, command, python=python, toolchain=toolchain)
    (folder / REPORT).unlink(missing_ok=True)  # it holds times: a record, not identity
    later = bool(options.get("version_compatible"))
    return _finished(Payload(entry, artifact.achieved, {}), entry, toolchain, report, later=later)


def build_here(
    prepared: Prepared,
    folder: Path,
    payload: Payload,
    program: str,
    entry: str,
    arguments: Sequence[str],
    python: str | None,
) -> Payload:
    """Build at once where the request's device is this machine; else leave the payload pending."""
    toolchain = prepared.device.toolchain
    try:
        here = run_build_program(folder / program, ["--probe"], python=python, toolchain=toolchain)
    except (DeviceError, MissingDependencyError):
        return payload
    if here["arch"] != prepared.device.arch:
        return payload
    command = ["--runs", "0", "--no-golden", *arguments]  # the pipeline makes and runs golden data, later
    report = run_build_program(folder / program, command, python=python, toolchain=toolchain)
    (folder / REPORT).unlink(missing_ok=True)  # it holds times: a record, not identity
    later = "--version-compatible" in arguments
    return replace(_finished(payload, entry, toolchain, report, later=later), build=None)


def _finished(
    payload: Payload, entry: str, toolchain: str, report: Mapping[str, Any], *, later: bool = False
) -> Payload:
    layers = report.get("layers", [])
    runtime = report.get("runtime", toolchain)  # what runs it need not be the toolchain's own library
    facts = {key: report[key] for key in ("device", "arch", runtime)}
    devices = {name: sum(layer["device"] == name for layer in layers) for name in ("gpu", "dla")}
    return replace(
        payload,
        entry=entry,
        build=None,
        achieved=achieved_of(payload.achieved, layers, source=report["layers_source"]),
        tool_versions={**payload.tool_versions, runtime: report[runtime]},
        log=payload.log + report["log"],
        metadata={**payload.metadata, "built_on": {**facts, "layers_by_device": devices}},
        requirements=_needs_of_built(report, runtime, later=later or runtime == "onnxruntime"),
    )


def _needs_of_built(report: Mapping[str, Any], runtime: str, *, later: bool) -> Requirements:
    """A built program is of the GPU and system that built it, and of the library's version unless `later` ones run."""
    host, version = this_host(), re.match(r"\d+(\.\d+)*", str(report[runtime]))
    specifier = f"{'>=' if later else '=='}{version[0]}" if version else ""
    return Requirements(arch=(host.family,), os=(host.os,), gpu=str(report["arch"]), packages={runtime: specifier})


def achieved_of(planned: Achieved, layers: Sequence[Mapping[str, Any]], *, source: str) -> Achieved:
    """What the built program computes each captured layer in.

    Args:
        planned: as counted in the ONNX file.
        layers: the layers of the program's report, each with its ONNX nodes and precision; where there are none, the
            plan stands.
        source: where the precisions were read.
    """
    if not layers:
        return planned
    deciding = _deciding(layers)
    found = (_executed(layer, _precision_of(layer, deciding.get(layer.name))) for layer in planned.layers)
    counted = Achieved.count(planned.requested, found, source=source)
    return replace(counted, evidence=Evidence.DEVICE, float_activations=planned.float_activations)


def _deciding(layers: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The built layer that says what a captured layer computes in, by the captured layer's name.

    Of several it is the one that multiplies: `linear` is the name of the Add behind `linear.matmul_1`, and of a Gemm.
    """
    best: dict[str, tuple[tuple[bool, ...], Mapping[str, Any]]] = {}
    for layer in layers:
        role = layer.get("role")
        for node in layer["nodes"]:
            name, _, step = node.partition(".")
            rank = (role != "moves", step.partition("_")[0] in _MULTIPLIES, role == "multiplies")
            if name not in best or rank > best[name][0]:
                best[name] = rank, layer
    return {name: layer for name, (_, layer) in best.items()}


def _precision_of(planned: LayerAchieved, deciding: Mapping[str, Any] | None) -> str | None:
    """None where the built program does not say it: what moves values is no evidence of how they were multiplied."""
    if deciding is None or (planned.macs and deciding.get("role") == "moves"):
        return None
    precision = str(deciding["precision"])
    return None if precision == "unknown" else precision


def _executed(layer: LayerAchieved, precision: str | None) -> LayerAchieved:
    if precision is None:
        known = layer.precision if not layer.macs else "unknown"
        reason = layer.reason or ("not named in the built program" if layer.macs else "")
        return replace(layer, precision=known, reason=reason)
    reason = layer.reason or (f"asked for {layer.precision}" if precision != layer.precision else "")
    return replace(layer, precision=precision, reason=reason)
