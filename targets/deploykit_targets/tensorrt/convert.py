"""Captured model -> portable artifact with the program of its engine; the engine itself where the device is here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_targets._on_device.portable import portable
from deploykit_targets._onnx.explicit import lower_explicit
from deploykit_targets._onnx.lint import load_rules
from deploykit_targets._tensorrt import build_engine
from deploykit_targets._tensorrt.build import blueprint_options, build_at_export
from deploykit_targets._tensorrt.compiled import prove, tf32_gate
from deploykit_targets.tensorrt.scheme import is_strongly_typed, opset_of
from deploykit_targets.tensorrt.session import interpreter

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write ONNX file and build program; where the request's device is this machine, build the engine too.

    Raises:
        ConversionError: an operator has no ONNX form, or TensorRT would refuse the file; names node and rule.
    """
    # Scales of q/dq nodes are float32 up to opset 18: older builders are told by flags what to do between them.
    typed = is_strongly_typed(prepared.device) or prepared.precision is not Precision.MIXED
    rules = load_rules("tensorrt")
    made = lower_explicit(prepared, rules, opset=opset_of(prepared.device), typed=typed)
    payload = portable(prepared, folder, made, build_engine, blueprint_options(prepared.options), *tf32_gate(prepared))
    if not prepared.is_baseline:
        payload = prove(prepared, folder, payload)
    return build_at_export(prepared, folder, payload, interpreter())
