"""An ONNX model of opset 18 -> one of an older opset, for parsers that read no newer one.

The step from 18 to 17 is ours: of what changed there, most of what a captured model holds has the same meaning in 17,
written differently, while onnx's own converter has no adapter for some (Pad) and names no node where it fails. What has
no older form is refused, with the operator, module and line it came from. Below 17 the converter takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx
from onnx import NodeProto, helper

from deploykit.capture.calls import refusal
from deploykit.contract.errors import ConversionError
from deploykit_targets._onnx.onnx_view import OnnxView, attribute, node_name
from deploykit_targets._onnx.writer import MODULE_PATH

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

Rewrite = Callable[[OnnxView, NodeProto], list[NodeProto]]
_NEWER, _OLDER = 18, 17


class _NoOlderFormError(Exception):
    """Why a node cannot be written in the older opset, as the end of a sentence."""


def take_down(model: onnx.ModelProto, opset: int, captured: CapturedModel) -> onnx.ModelProto:
    """Write a model in an older opset.

    Args:
        model: the model of opset 18; left as it is.
        opset: 17 or older.
        captured: the captured model that it was lowered from; says where a node comes from.
    Raises:
        ConversionError: an operator has no form there; names node, module path and source line.
    """
    older = onnx.ModelProto()
    older.CopyFrom(model)
    for view in reversed(list(OnnxView(older).views())):  # inner graphs first: the outer ones copy them
        nodes = [new for node in view.nodes for new in _older(view, node, captured, opset)]
        del view.graph.node[:]
        view.graph.node.extend(nodes)
    for entry in older.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = _OLDER
    return older if opset == _OLDER else _converted(older, opset)


def _older(view: OnnxView, node: NodeProto, captured: CapturedModel, opset: int) -> list[NodeProto]:
    if node.domain not in ("", "ai.onnx") or not _changed(node.op_type):
        return [node]
    copied = NodeProto()
    copied.CopyFrom(node)
    try:
        return _REWRITES.get(node.op_type, _refuse)(view, copied)
    except _NoOlderFormError as error:
        raise _refusal(
            node, captured, f"has no form in opset {opset}, the newest that the device reads: {error}"
        ) from error


def _changed(op_type: str) -> bool:
    """Whether the operator is new or another one since the newer opset; one that ONNX does not know is not."""
    try:
        return bool(onnx.defs.get_schema(op_type, _NEWER, "").since_version == _NEWER)
    except onnx.defs.SchemaError:
        return False


def _refusal(node: NodeProto, captured: CapturedModel, why: str) -> ConversionError:
    """Names of nodes begin with the captured operator's, which has no dot."""
    source = node_name(node).split(".", maxsplit=1)[0]
    found = next((call for call in captured.graph_module.graph.nodes if call.name == source), None)
    why = f"({node.op_type} {node_name(node)}) {why}"
    if found is not None and found.op == "call_function":
        return refusal(found, captured.origins, why)
    path = next((entry.value for entry in node.metadata_props if entry.key == MODULE_PATH), "")
    return ConversionError(f"{path or 'the model itself'}: {why}", hint="replace the operation by simpler ones")


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # it raises RuntimeError and its own types
        raise ConversionError(
            f"the model cannot be written at opset {opset}, the newest that the device reads: {error}",
            hint="use a device with a newer runtime",
        ) from error


# -- one function per operator that changed -----------------------------------------------------------------


def _refuse(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    raise _NoOlderFormError("the operator is newer")


def _pad(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """The same without the input of axes, which our own table does not write."""
    if view.input(node, 3) is not None:
        raise _NoOlderFormError("it pads chosen axes")
    del node.input[3:]
    return [node]


def _reduce(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """Axes are an attribute; without any, all axes are reduced in both."""
    operand = view.input(node, 1)
    axes = None if operand is None else view.constant(operand.value)
    if operand is not None and axes is None:
        raise _NoOlderFormError("its axes are computed")
    if (axes is None or not axes.size) and attribute(node, "noop_with_empty_axes", 0):
        raise _NoOlderFormError("it reduces nothing where it has no axes")
    _drop(node, "noop_with_empty_axes")
    del node.input[1:]
    if axes is not None and axes.size:
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes.ravel()]))
    return [node]


def _resize(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """The same where it neither smooths, nor resizes chosen axes, nor keeps the aspect ratio."""
    if attribute(node, "antialias", 0):
        raise _NoOlderFormError("it smooths what it shrinks (antialias)")
    policy = next((entry.s for entry in node.attribute if entry.name == "keep_aspect_ratio_policy"), b"stretch")
    mode = next((entry.s for entry in node.attribute if entry.name == "coordinate_transformation_mode"), b"")
    if policy != b"stretch" or mode == b"half_pixel_symmetric" or any(entry.name == "axes" for entry in node.attribute):
        raise _NoOlderFormError("it resizes in a way that is newer")
    _drop(node, "antialias", "keep_aspect_ratio_policy")
    return [node]


def _split(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """Sizes as an input, or equal parts by the number of outputs; our own table splits into halves without sizes.

    Parts that are not equal are refused by the older operator when shapes are known, and never silently cut otherwise.
    """
    _drop(node, "num_outputs")
    return [node]


def _scatter(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """The same for the reductions that were there."""
    reduction = next((entry.s for entry in node.attribute if entry.name == "reduction"), b"none")
    if reduction not in (b"none", b"add", b"mul"):
        raise _NoOlderFormError(f"it scatters by {reduction.decode()}")
    return [node]


def _lp_pool(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """The same without ceiling and dilation."""
    dilations = next((list(entry.ints) for entry in node.attribute if entry.name == "dilations"), [])
    if attribute(node, "ceil_mode", 0) or any(dilation != 1 for dilation in dilations):
        raise _NoOlderFormError("it pools with ceil_mode or dilations")
    _drop(node, "ceil_mode", "dilations")
    return [node]


def _mish(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """`x * tanh(softplus(x))`; the last node keeps the name, by which layers are known."""
    name, value = node_name(node), node.input[0]
    soft = helper.make_node("Softplus", [value], [f"{name}.softplus"], f"{name}.softplus")
    bent = helper.make_node("Tanh", list(soft.output), [f"{name}.tanh"], f"{name}.tanh")
    product = helper.make_node("Mul", [value, *bent.output], list(node.output), node.name)
    for made in (soft, bent, product):
        made.metadata_props.extend(node.metadata_props)
    return [soft, bent, product]


def _drop(node: NodeProto, *names: str) -> None:
    kept = [entry for entry in node.attribute if entry.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


_REWRITES: dict[str, Rewrite] = {
    "Pad": _pad,
    "Resize": _resize,
    "Split": _split,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "LpPool": _lp_pool,
    "Mish": _mish,
    **{
        f"Reduce{stem}": _reduce
        for stem in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
}
