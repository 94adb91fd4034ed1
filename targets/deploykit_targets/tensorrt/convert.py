"""Captured model -> portable artifact with the recipe of its engine; the engine itself where the device is here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_targets._onnx.explicit import lower_explicit
from deploykit_targets._onnx.lint import load_rules
from deploykit_targets._recipe.portable import build_from, build_here, portable
from deploykit_targets._tensorrt import build_engine
from deploykit_targets._tensorrt.build_engine import ENGINE
from deploykit_targets._tensorrt.compiled import prove, tf32_gate
from deploykit_targets._tensorrt.requirements import PROGRAM
from deploykit_targets.tensorrt.scheme import is_strongly_typed, opset_of
from deploykit_targets.tensorrt.session import interpreter

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit_calibration.prepared import Prepared
    from deploykit_targets.tensorrt.target import TensorRtOptions


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write ONNX file and recipe; where the request's device is this machine, build the engine too.

    Raises:
        ConversionError: an operator has no ONNX form, or TensorRT would refuse the file; names node and rule.
    """
    # Scales of q/dq nodes are float32 up to opset 18: older builders are told by flags what to do between them.
    typed = is_strongly_typed(prepared.device) or prepared.precision is not Precision.MIXED
    rules = load_rules("tensorrt")
    made = lower_explicit(prepared, rules, opset=opset_of(prepared.device), typed=typed)
    payload = portable(prepared, folder, made, build_engine, recipe_options(prepared.options), *tf32_gate(prepared))
    if not prepared.is_baseline:
        payload = prove(prepared, folder, payload)
    return build_here(prepared, folder, payload, PROGRAM.name, ENGINE, arguments_of(prepared.options), interpreter())


def build(artifact: StoredArtifact, folder: Path, options: TensorRtOptions) -> Payload:
    """Build the engine of an artifact into `folder`; the timing cache stays with the artifact for the next build.

    Raises:
        DeviceError: no driver, another GPU than the artifact's, or TensorRT crashed.
        MissingDependencyError: no Python here has TensorRT's bindings.
        ConversionError: TensorRT refused; carries what it logged.
    """
    return build_from(
        artifact,
        folder,
        PROGRAM.name,
        ENGINE,
        arguments=arguments_of(options),
        options=recipe_options(options),
        python=interpreter(),
    )


def recipe_options(options: TensorRtOptions) -> dict[str, Any]:
    """Options as defaults of the recipe's command line."""
    return {
        "workspace_mib": options.workspace_mib,
        "optimization_level": options.optimization_level,
        "dla": options.dla,
        "no_gpu_fallback": not options.gpu_fallback,
        "version_compatible": options.version_compatible,
        "hardware": options.hardware,
        "max_batch": options.max_batch,
        "shapes": list(options.shapes),
    }


def arguments_of(options: TensorRtOptions) -> list[str]:
    """Options as the recipe's command line takes them."""
    given = {
        "--workspace-mib": options.workspace_mib,
        "--optimization-level": options.optimization_level,
        "--dla": options.dla,
        "--hardware": options.hardware,
        "--max-batch": options.max_batch,
    }
    arguments = [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
    flags = {"--no-gpu-fallback": not options.gpu_fallback, "--version-compatible": options.version_compatible}
    arguments += [part for shape in options.shapes for part in ("--shape", shape)]
    return arguments + [flag for flag, wanted in flags.items() if wanted]
