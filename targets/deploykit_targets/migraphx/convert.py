"""Captured model -> portable artifact with the program that compiles it; compiled too where the device is here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_targets._on_device.portable import MODEL, build_from, build_here, portable
from deploykit_targets._onnx.explicit import lower_explicit
from deploykit_targets._onnx.lint import load_rules
from deploykit_targets.migraphx import build_model
from deploykit_targets.migraphx.build_model import PROGRAM_FILE
from deploykit_targets.migraphx.scheme import OPSET, notes_of
from deploykit_targets.migraphx.session import MIGRAPHX, PROGRAM, interpreter

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.artifact.store import StoredArtifact
    from deploykit_calibration.prepared import Prepared
    from deploykit_targets.migraphx.target import MigraphxOptions


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write ONNX file and build program; where the request's device is this machine, compile it too.

    MIGraphX's parser has no bfloat16: such a model is written in float32, and the program has MIGraphX convert it.

    Raises:
        ConversionError: an operator has no ONNX form, or MIGraphX would refuse the file; names node and rule.
    """
    rules = load_rules("migraphx")
    typed = prepared.precision is not Precision.BF16
    made = lower_explicit(prepared, rules, opset=OPSET, typed=typed)
    payload = portable(
        prepared, folder, made, build_model, asdict(prepared.options), notes_of(prepared.precision, prepared.device)
    )
    python = interpreter(prepared.options.runtime)
    return build_here(
        prepared, folder, payload, PROGRAM, entry_of(prepared.options), arguments_of(prepared.options), python
    )


def build(artifact: StoredArtifact, folder: Path, options: MigraphxOptions) -> Payload:
    """Compile an artifact into `folder`.

    Raises:
        DeviceError: no driver, another GPU than the artifact's, or MIGraphX crashed.
        MissingDependencyError: no Python here has MIGraphX's bindings.
        PlacementError: ONNX Runtime would have run the model on the CPU.
        ConversionError: MIGraphX refused.
    """
    return build_from(
        artifact,
        folder,
        PROGRAM,
        entry_of(options),
        arguments=arguments_of(options),
        options=asdict(options),
        python=interpreter(options.runtime),
    )


def entry_of(options: MigraphxOptions) -> str:
    """What the runtime opens: the compiled program, or the ONNX file beside its cache."""
    return PROGRAM_FILE if options.runtime == MIGRAPHX else MODEL


def arguments_of(options: MigraphxOptions) -> list[str]:
    """Options as the build program's command line takes them."""
    flags = {"exhaustive-tune": options.exhaustive_tune, "fast-math": options.fast_math}
    chosen = [f"--{flag}" if wanted else f"--no-{flag}" for flag, wanted in flags.items()]  # over those of the export
    shapes = [part for shape in options.shapes for part in ("--shape", shape)]
    return ["--runtime", options.runtime, "--max-batch", str(options.max_batch), *shapes, *chosen]
