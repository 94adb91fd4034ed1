"""Checks that every ONNX file written here passes before it is published, whatever runtime will read it.

The lint (`lint.py`) asks what one toolchain wants; this asks whether the file is sound: valid ONNX, an operator set we
write, q/dq nodes with explicit constant parameters, no stale shapes, nothing of the machine it was made on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from deploykit_targets._onnx.lint import Finding
from deploykit_targets._onnx.lower import IR_VERSION, MAX_OPSET, MIN_OPSET
from deploykit_targets._onnx.onnx_view import OnnxView, node_name

Report = tuple[str, str, str]
_INT8_RANGE = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32}
_PATH = re.compile(r"(/home/|/root/|/tmp/|/usr/|[A-Za-z]:\\\\)")


def check(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """Every broken rule of `RULES`, in their order; empty for a sound file."""
    view = OnnxView(model)
    return tuple(
        Finding(rule, node, op_type, message, "error")
        for rule, function in RULES.items()
        for node, op_type, message in function(view)
    )


def _valid(view: OnnxView) -> Iterator[Report]:
    """ONNX's own checker accepts the model; operators of other domains are not its business."""
    try:
        onnx.checker.check_model(view.model)
    except onnx.checker.ValidationError as error:
        yield "", "", f"is not valid ONNX: {error}"


def _versions(view: OnnxView) -> Iterator[Report]:
    """The operator set is one that is written here, and readers of that IR version exist."""
    if not MIN_OPSET <= view.opset <= MAX_OPSET:
        yield "", "", f"uses opset {view.opset}; written here are {MIN_OPSET} to {MAX_OPSET}"
    if view.model.ir_version > IR_VERSION:
        yield "", "", f"has IR version {view.model.ir_version}; runtimes in the field read up to {IR_VERSION}"


def _pairs(view: OnnxView) -> Iterator[NodeProto]:
    return (node for node in view.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _zero_points(view: OnnxView) -> Iterator[Report]:
    """Zero points are given and constant: some runtimes match on them, and leaving them out changes the type."""
    for node in _pairs(view):
        if len(node.input) < 3 or not node.input[2]:
            yield node_name(node), node.op_type, "has no explicit zero point"
        elif (proto := view.constant_proto(node.input[2])) is None:
            yield node_name(node), node.op_type, "its zero point is not a constant"
        elif proto.data_type not in _INT8_RANGE:
            yield node_name(node), node.op_type, f"its zero point is {TensorProto.DataType.Name(proto.data_type)}"


def _scales(view: OnnxView) -> Iterator[Report]:
    """Scales are constant, finite and above zero, and as many as zero points."""
    for node in _pairs(view):
        scales = view.constant(node.input[1])
        zero_points = view.constant(node.input[2]) if len(node.input) > 2 else None
        if scales is None:
            yield node_name(node), node.op_type, "its scale is not a constant"
        elif not np.all(np.isfinite(scales)) or np.any(scales <= 0):
            yield node_name(node), node.op_type, f"has a scale that is not finite and above zero: {scales.min()}"
        elif zero_points is not None and scales.shape != zero_points.shape:
            yield node_name(node), node.op_type, f"has scales {scales.shape} and zero points {zero_points.shape}"


def _biases(view: OnnxView) -> Iterator[Report]:
    """An int32 bias has zero points of zero: kernels add it as it is."""
    for node in _pairs(view):
        proto = view.constant_proto(node.input[0])
        zero_points = view.constant(node.input[2]) if len(node.input) > 2 else None
        if proto is not None and proto.data_type == TensorProto.INT32 and zero_points is not None and zero_points.any():
            yield node_name(node), node.op_type, "dequantises an int32 bias with a zero point other than zero"


def _names(view: OnnxView) -> Iterator[Report]:
    """Nodes are named, once each: reports and profiles refer to them."""
    seen: set[str] = set()
    for node in view.nodes:
        if not node.name or node.name in seen:
            yield node_name(node), node.op_type, "has no name" if not node.name else "shares its name"
        seen.add(node.name)


def _no_traces(view: OnnxView) -> Iterator[Report]:
    """No inner shapes, no documentation strings, no paths of the machine it was made on."""
    if view.model.graph.value_info:
        yield "", "", "holds shapes of inner values, which go stale"
    for node in view.nodes:
        texts = [node.doc_string, *(entry.value for entry in node.metadata_props)]
        if any(_PATH.search(text) for text in texts):
            yield node_name(node), node.op_type, "names a file of the machine it was made on"


RULES: dict[str, Callable[[OnnxView], Iterator[Report]]] = {
    "valid": _valid,
    "versions": _versions,
    "zero-point": _zero_points,
    "scale": _scales,
    "bias": _biases,
    "names": _names,
    "no-traces": _no_traces,
}
