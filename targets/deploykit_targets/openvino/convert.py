"""Captured model -> OpenVINO IR, by way of the shared ONNX lowering; int8 counted in OpenVINO's execution graph."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import ConversionError
from deploykit.contract.optional import require, versions
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_calibration.layers import reconcile, shown_names
from deploykit_calibration.op_kinds import MACS, RECURRENT, kind_of
from deploykit_targets._float16 import Float16Plan, plan_float16
from deploykit_targets._onnx.lowered import lowered
from deploykit_targets._schemes.recurrent import notes_on_steps
from deploykit_targets.openvino.joins import keep_apart, over_last_axis
from deploykit_targets.openvino.session import executed_precisions
from deploykit_targets.openvino.wide import mark, write_marks

if TYPE_CHECKING:
    import onnx

    from deploykit.capture import CapturedModel
    from deploykit_calibration.prepared import Prepared

_ENTRY = "model.xml"
_NOTES = {
    Precision.FP16: ("weights are stored in float16; the CPU computes in float32 where it has no float16 units",),
    Precision.BF16: ("weights are stored in float32; multiply-accumulates run in bfloat16",),
}
_STEPS = (
    "two LSTM layers took 1.2 times as long as in fp32 with 128 units, and 0.45 times with 512 (Zen 4 with VNNI, one"
    " row, one thread; without VNNI, on AVX2, 2 to 3 times and 1.3 times)"
)
# Where the time of int8 and float crosses on a CPU with VNNI: LSTMs of 24 steps take 1.16 times as long with 131,072
# of a step (64 units, 8 rows), 0.68 with 262,144 (256, 1 row); GRUs 1.07 times with 98,304, 0.57 with 196,608.
_PAYS_FROM = {"lstm": 180_000, "gru": 100_000}
_ARITHMETIC = frozenset(f"aten.{name}.Tensor" for name in ("add", "sub", "mul", "div"))
_LEFT = {
    precision: f"OpenVINO has no {precision} kernel for it on this CPU"
    for precision in (Precision.FP16, Precision.BF16)
}


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write `model.xml` and `model.bin`, and count what they compute in.

    Raises:
        ConversionError: an operator has no ONNX form, or OpenVINO refuses the graph.
        UsageError: patterns for a precision that has no choice by layer.
    """
    made = lowered(prepared)
    keep_apart(made.model, over_last_axis(prepared.graph_module.graph))
    half = prepared.precision is Precision.FP16
    plan = plan_float16(prepared) if half else Float16Plan()
    _write_ir(made.model, folder / _ENTRY, half=half, kept=plan.kept)
    return Payload(
        entry=_ENTRY,
        achieved=plan.listed(_achieved(prepared, folder / _ENTRY), prepared.captured),
        tool_versions=versions("torch", "onnx", "openvino"),
        log=made.log,
    )


def _achieved(prepared: Prepared, path: Path) -> Any:
    executed = executed_precisions(
        path,
        prepared.precision,
        shown_names(prepared),
        folded=_factors_behind(prepared.captured),
        recurrent=[layer.name for layer in prepared.layers if layer.kind in RECURRENT],
    )
    return reconcile(
        prepared,
        executed,
        source="OpenVINO's execution graph",
        notes=(*_NOTES.get(prepared.precision, ()), *notes_on_steps(prepared, _STEPS, pays_from=_PAYS_FROM)),
        left=_LEFT.get(prepared.precision, ""),
    )


def _factors_behind(captured: CapturedModel) -> dict[str, str]:
    """Arithmetic with constants alone behind a layer that multiplies -> the layer, whose weights may take it in."""
    found: dict[str, str] = {}
    for node in captured.graph_module.graph.nodes:
        data = [each for each in node.all_input_nodes if each.op != "get_attr"]
        if str(node.target) not in _ARITHMETIC or len(data) != 1 or len(data[0].users) != 1:
            continue
        if data[0].name in found or kind_of(data[0]) in MACS:
            found[node.name] = found.get(data[0].name, data[0].name)
    return found


def _write_ir(model: onnx.ModelProto, path: Path, *, half: bool, kept: Collection[str]) -> None:
    openvino = require("openvino", extra="openvino", purpose="export to openvino")
    try:
        converted = openvino.Core().read_model(model.SerializeToString())
    except RuntimeError as error:
        raise ConversionError(
            f"OpenVINO refuses the model: {error}", hint='target="x86-cpu" uses ONNX Runtime'
        ) from error
    _widen_inputs(converted, openvino.Type.i32)
    _name_for_layers(converted, model)
    _name_canonically(converted, {name for node in model.graph.node for name in (node.name, *node.output)})
    marked = mark(converted, kept)
    openvino.save_model(converted, str(path), compress_to_fp16=half)
    write_marks(path, marked)


def _widen_inputs(model: Any, wide: Any) -> None:
    """Take 16-bit integers as int32, which OpenVINO makes of what is fed: its int8 kernels refuse them as int16."""
    for parameter in model.get_parameters():
        if parameter.get_element_type().get_type_name() in ("i16", "u16"):
            parameter.set_element_type(wide)
    model.validate_nodes_and_infer_types()


def opset_of(path: Path) -> int:
    """The newest of OpenVINO's operator sets that an IR uses."""
    return max(map(int, re.findall(r'version="opset(\d+)"', path.read_text(encoding="utf-8"))), default=1)


def _name_for_layers(model: Any, source: onnx.ModelProto) -> None:
    """Operators that make outputs have the names of these, which no layer has: they get those of their layers."""
    ends = {value.name for value in source.graph.output}
    layers = {value: node.name for node in source.graph.node for value in node.output if value in ends}
    for node in model.get_ops():
        if node.get_type_name() != "Result" and node.get_friendly_name() in layers:
            node.set_friendly_name(layers[node.get_friendly_name()])


def _name_canonically(model: Any, known: set[str]) -> None:
    """Number helper nodes by their place in the graph: OpenVINO numbers them by a counter of the process."""
    for index, node in enumerate(model.get_ordered_ops()):
        layer, _, helper = node.get_friendly_name().partition("/")
        if layer not in known or re.search(r"_\d+", helper):
            kept = f"{layer}/" if layer in known else ""
            node.set_friendly_name(f"{kept}{node.get_type_name()}.{index}")
