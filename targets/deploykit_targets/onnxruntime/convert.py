"""Captured model -> one ONNX file in the requested precision, and what ONNX Runtime really computes it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.contract.optional import versions
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_calibration.layers import reconcile, shown_names
from deploykit_targets._float16 import Float16Plan, plan_float16
from deploykit_targets._onnx.count import count
from deploykit_targets._onnx.lowered import lowered
from deploykit_targets._onnx.ort_forms import for_onnxruntime
from deploykit_targets._onnx.weights import Compressed, dynamic_int8, dynamic_lstms, float16, weight_only
from deploykit_targets._schemes.recurrent import notes_on_steps

if TYPE_CHECKING:
    import onnx

    from deploykit.contract.achieved import Achieved
    from deploykit_calibration.prepared import Prepared

_ENTRY = "model.onnx"
_WEIGHTS_NAME = "model.onnx.data"
_PROTOBUF_LIMIT_BYTES = 2_000_000_000
_LEFT = {
    Precision.FP16: "ONNX Runtime has no float16 kernel for it on this CPU, and casts around the float32 one",
    Precision.INT8_DYNAMIC: "ONNX Runtime's dynamic quantizer does not know it",
    Precision.INT8_WEIGHT_ONLY: "no weight-only form is written for it",
    Precision.INT4_WEIGHT_ONLY: "no weight-only form is written for it",
}
_STEPS = (
    "two GRU layers took 2.8 times as long as in fp32 with 128 units, and 0.7 times with 512 (Zen 4 with VNNI, one row,"
    " one thread; 3.6 and 0.7 on AVX2 without)"
)
# Where the time of int8 and float crosses: GRUs of 24 steps take 1.69 times as long with 196,608 of a step (256 units),
# 1.14 with 393,216 (128, 8 rows), 0.83 with 442,368 (384); RNNs 1.6 times with 16,384, 0.57 with 147,456. Zen 4, one
# thread; the rest of a step is a dozen operators of a GRU, three of an RNN.
_PAYS_FROM = {"gru": 400_000, "rnn": 60_000}
_HELD_AS = "the precision is that of the stored weights; products run in float32 or, for int4, in int8 blocks"
_NOTES = {
    Precision.FP16: ("weights are stored in float16; without a float16 kernel ONNX Runtime casts around float32 ones",),
    Precision.INT8_WEIGHT_ONLY: (_HELD_AS,),
    Precision.INT4_WEIGHT_ONLY: (_HELD_AS,),
}


@dataclass(frozen=True, eq=False)
class _Made:
    """The finished graph, with what is known of it before it is counted."""

    model: onnx.ModelProto
    held: Mapping[str, str] | None = None
    log: str = ""
    plan: Float16Plan = field(default_factory=Float16Plan)


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write `model.onnx`, and count what it computes in.

    Raises:
        ConversionError: an operator has no ONNX form, or ONNX Runtime refuses the graph.
    """
    made = _make(prepared)
    path = folder / _ENTRY
    _write(for_onnxruntime(made.model), path)
    return Payload(
        entry=_ENTRY,
        achieved=_achieved(prepared, made, path),
        tool_versions=versions("torch", "onnx", "onnxruntime"),
        log=made.log,
    )


def _make(prepared: Prepared) -> _Made:
    made = lowered(prepared, opset=prepared.options.opset)
    if prepared.precision is Precision.FP32:
        return _Made(made.model, log=made.log)
    plan = plan_float16(prepared) if prepared.precision is Precision.FP16 else Float16Plan()
    found = _compressed(prepared, made.model, plan)
    # the precision of weights alone is that of what is stored, and not that of the arithmetic
    held = found.executed if prepared.precision.is_weight_only else None
    return _Made(found.model, held, "\n".join(filter(None, (made.log, *found.log))), plan)


def _compressed(prepared: Prepared, model: onnx.ModelProto, plan: Float16Plan) -> Compressed:
    if prepared.precision is Precision.FP16:
        return float16(model, plan.kept)
    if prepared.precision in (Precision.INT8, Precision.INT8_DYNAMIC):
        write = dynamic_lstms if prepared.scheme.is_static else dynamic_int8
        return write(model, reduce_range=prepared.scheme.reduce_range, keep=prepared.in_float)
    return weight_only(model, prepared.placed.forms)


def _write(model: onnx.ModelProto, path: Path) -> None:
    """One file, or two where the weights are beyond what protobuf holds."""
    import onnx

    if model.ByteSize() < _PROTOBUF_LIMIT_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save(model, str(path), save_as_external_data=True, location=_WEIGHTS_NAME)


def _achieved(prepared: Prepared, made: _Made, path: Path) -> Achieved:
    counted = count(path, shown_names(prepared))
    achieved = reconcile(
        prepared,
        {**counted.executed, **(made.held or {})},
        source="ONNX Runtime's optimised graph",
        notes=(*_NOTES.get(prepared.precision, ()), *notes_on_steps(prepared, _STEPS, pays_from=_PAYS_FROM)),
        left=_LEFT.get(prepared.precision, ""),
    )
    return made.plan.listed(achieved, prepared.captured)
