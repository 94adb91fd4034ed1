"""Captured model -> ONNX file, blueprint, and the engine that NVIDIA's compiler makes of them here, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.errors import MissingDependencyError
from deploykit.plugin.target import Payload
from deploykit_targets._on_device.portable import COMMAND, portable
from deploykit_targets._onnx.explicit import Explicit, lower_explicit
from deploykit_targets._onnx.held import lower_held
from deploykit_targets._onnx.lint import load_rules
from deploykit_targets._tensorrt import build_engine
from deploykit_targets._tensorrt.build import blueprint_options, build_at_export
from deploykit_targets._tensorrt.build_engine import ENGINE, RTX
from deploykit_targets._tensorrt.compiled import prove_ahead, tf32_gate
from deploykit_targets._tensorrt.compiler import is_installed
from deploykit_targets._tensorrt.requirements import BINDINGS, PROGRAM
from deploykit_targets.tensorrt_rtx.scheme import OPSET, architectures_of
from deploykit_targets.tensorrt_rtx.session import interpreter

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write ONNX file and program, and compile the engine; where the request's device is this machine, finish it too.

    Without the compiler here (it is for x86-64) the engine is compiled by `deploykit build`.

    Raises:
        ConversionError: an operator has no ONNX form, or the compiler refuses it; names node, module and source line.
        MissingDependencyError: an engine for several architectures is asked for, and there is no compiler here.
    """
    archs = architectures_of(prepared.device, prepared.options.compute_capabilities)
    ahead = is_installed() and not prepared.is_baseline
    if prepared.options.compute_capabilities and not is_installed():
        raise MissingDependencyError(BINDINGS.project, extra="tensorrt-rtx", purpose="compile for several GPUs")
    made = _lowered(prepared)
    notes, gate = tf32_gate(prepared)
    more = {"library": RTX, "compute_capabilities": list(archs), **(_engine() if ahead else {})}
    payload = portable(
        prepared, folder, made, build_engine, blueprint_options(prepared.options), notes, gate, more=more
    )
    payload = replace(payload, build=PendingBuild(COMMAND, _reason(prepared, ahead=ahead)))
    if not prepared.is_baseline:
        payload = prove_ahead(prepared, folder, payload, archs)
    return needing_the_bindings(build_at_export(prepared, folder, payload, interpreter()))


def _lowered(prepared: Prepared) -> Explicit:
    rules = load_rules("tensorrt-rtx")
    if prepared.precision.is_weight_only:
        return lower_held(prepared, rules)
    return lower_explicit(prepared, rules, opset=OPSET)


def _engine() -> dict[str, Any]:
    """Where the compiled engine is; another version of the library compiles its own of the ONNX file."""
    return {"engine": ENGINE, "engine_version": BINDINGS.version}


def _reason(prepared: Prepared, *, ahead: bool) -> str:
    done = "the engine is compiled, and is finished and proved" if ahead else "the engine is compiled"
    where = f"on the GPU that runs it: build it on {prepared.device.name}"
    return f"{done} {where} (without deploykit there: python3 {PROGRAM.name} in the artifact's folder)"


def needing_the_bindings(built: Payload) -> Payload:
    """The library is imported under another name than it is installed by."""
    if built.requirements is None:
        return built
    packages = {BINDINGS.project if name == RTX else name: v for name, v in built.requirements.packages.items()}
    return replace(built, requirements=replace(built.requirements, packages=packages))
