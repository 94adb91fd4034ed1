"""Weights held in 4 or 8 bits behind a DequantizeLinear, as TensorRT's weight-only kernels want them.

Only matrix products with a constant matrix: int4 in blocks of the inner axis (opset 21), int8 per output channel.
NVIDIA's compiler (TensorRT for RTX 1.7.1) multiplies these from the narrow weights in one kernel (`runtime_fusion`),
and expands int8 in blocks, int4 per channel, fp8 in blocks and fp4 in a kernel of its own before a plain product:
these forms are not written. Of fp4 weights (blocks of 16, float8 scales, for sm_120 alone) it makes a product in fp4
only where the activations are rounded when it runs, by the parser's own `TRT_FP4DynamicQuantize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper

from deploykit.contract.formats import PerGroup, TensorScheme
from deploykit_calibration.grouped import in_groups
from deploykit_calibration.layers import reconcile
from deploykit_targets._float16 import plan_float16
from deploykit_targets._onnx.edit import Editor
from deploykit_targets._onnx.explicit import SOURCE, Explicit, checked
from deploykit_targets._onnx.lowered import lowered
from deploykit_targets._onnx.retype import FLOAT16, retype
from deploykit_targets._onnx.traffic import traffic_of
from deploykit_targets._onnx.weights import Compressed, products_with_bias_apart

if TYPE_CHECKING:
    import onnx

    from deploykit_calibration.prepared import Prepared
    from deploykit_targets._onnx.lint import LintRules

OPSET = 21
"""The first with 4-bit types and with blocks in DequantizeLinear."""
_MATRIX_RANK = 2


def lower_held(prepared: Prepared, rules: LintRules) -> Explicit:
    """Lower a prepared model in int8-weight-only or int4-weight-only; activations and arithmetic are float16.

    Args:
        rules: the rules of the toolchain that will read the file.
    Raises:
        ConversionError: an operator has no ONNX form, a value does not fit float16, or the runtime refuses the file.
        UsageError: a pattern matches no layer.
    """
    made = lowered(prepared, opset=OPSET)
    model = made.model
    written = hold_weights(model, prepared.placed.forms)
    plan = plan_float16(prepared)
    retype(model, FLOAT16, plan.kept)
    findings = checked(model, replace(rules, max_opset=OPSET))
    plain = {layer.name: "float32" if layer.name in plan.kept else "float16" for layer in prepared.layers}
    achieved = reconcile(prepared, {**plain, **written.executed}, source=SOURCE)
    return Explicit(
        model, made.log, findings, plan.listed(achieved, prepared.captured), traffic_of(prepared.captured), rules
    )


def hold_weights(model: onnx.ModelProto, forms: Mapping[str, TensorScheme]) -> Compressed:
    """Put the weights of matrix products behind a DequantizeLinear, in the forms that they were placed in.

    Args:
        model: lowered float model; changed in place.
        forms: the forms of the weights of layers, by captured name: 4 bits in blocks that divide the inner axis, or 8
            bits for each output channel. Other layers stay as they are.
    """
    result = Compressed(model)
    products_with_bias_apart(model)
    editor = Editor(model)
    for node in list(model.graph.node):
        name = node.name.partition(".")[0]
        weight = editor.weight(node, 1) if node.op_type == "MatMul" and name in forms else None
        if weight is None or weight.ndim != _MATRIX_RANK:
            continue
        editor.replace(node, _held(editor, node, weight, forms[name]))
        result.executed[name] = f"int{forms[name].bits}-weights"
    editor.finish()
    return result


def _held(editor: Editor, node: NodeProto, weight: np.ndarray, form: TensorScheme) -> list[NodeProto]:
    """The product, with its weight dequantized in front of it."""
    codes, scales = held(weight, form)
    base = f"{node.input[1]}.q{form.bits}"
    zeros = np.zeros(scales.shape, np.int8)
    inputs = [
        _stored(editor, codes, base, form.bits),
        editor.add(scales, f"{base}.scale"),
        _stored(editor, zeros, f"{base}.zero", form.bits),
    ]
    wide, in_blocks = f"{base}.dq", scales.ndim > 1
    dequantize = helper.make_node("DequantizeLinear", inputs, [wide], name=wide, axis=0 if in_blocks else 1)
    if in_blocks:
        dequantize.attribute.append(helper.make_attribute("block_size", len(codes) // len(scales)))
    product = NodeProto()
    product.CopyFrom(node)
    product.input[1] = wide
    return [dequantize, product]


def held(weight: np.ndarray, form: TensorScheme) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as the file holds it, with scales that are values of float16.

    Args:
        weight: float32, shape (inner, outer).
        form: blocks that divide the inner axis, or `PerGroup(0)` for one scale of each output channel.
    Returns:
        codes int8 (inner, outer); scales float32 (blocks, outer), or (outer,) where a channel has one.
    """
    found = in_groups(torch.tensor(weight.T), form, float16_scales=True)
    codes, scales = found.matrix().T.numpy(), found.scales[:, :, 0].T.numpy()
    whole = form.granularity == PerGroup(0)
    return np.ascontiguousarray(codes), np.ascontiguousarray(scales[0] if whole else scales)


def _stored(editor: Editor, codes: np.ndarray, name: str, bits: int) -> str:
    """Store codes; of 4 bits two in a byte, the first in its low half, as the standard packs them."""
    if bits == 8:
        return editor.add(codes, name)
    flat = codes.reshape(-1).astype(np.uint8) & 0xF
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    packed = (flat[0::2] | (flat[1::2] << 4)).tobytes()
    return editor.add_tensor(helper.make_tensor(name, TensorProto.INT4, codes.shape, packed, raw=True))
