"""Weights held in 4 or 8 bits behind a DequantizeLinear, as TensorRT's weight-only kernels want them.

Only matrix products with a constant matrix: int4 in blocks of the inner axis (opset 21), int8 per output channel.
NVIDIA's compiler (TensorRT for RTX 1.7.1) multiplies these from the narrow weights in one kernel (`runtime_fusion`),
and expands int8 in blocks, int4 per channel, fp8 in blocks and fp4 in a kernel of its own before a plain product:
these forms are not written. Of fp4 weights (blocks of 16, float8 scales, for sm_120 alone) it makes a product in fp4
only where the activations are rounded when it runs, by the parser's own `TRT_FP4DynamicQuantize`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, TensorProto, helper

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
_LIMIT = {4: 7, 8: 127}


def lower_held(prepared: Prepared, rules: LintRules, *, block_size: int) -> Explicit:
    """Lower a prepared model in int8-weight-only or int4-weight-only; activations and arithmetic are float16.

    Args:
        rules: of the toolchain that will read the file.
        block_size: weights of the inner axis that share a scale, for int4.
    Raises:
        ConversionError: an operator has no ONNX form, a value does not fit float16, or the runtime refuses the file.
        UsageError: a pattern matches no layer.
    """
    made = lowered(prepared, opset=OPSET)
    model = made.model
    held = hold_weights(model, bits=prepared.scheme.weight.bits, block_size=block_size, keep=prepared.in_float)
    plan = plan_float16(prepared)
    retype(model, FLOAT16, plan.kept)
    findings = checked(model, replace(rules, max_opset=OPSET))
    plain = {layer.name: "float32" if layer.name in plan.kept else "float16" for layer in prepared.layers}
    achieved = reconcile(
        prepared.precision,
        prepared.layers,
        {**plain, **held.executed},
        source=SOURCE,
    )
    return Explicit(
        model, made.log, findings, plan.listed(achieved, prepared.captured), traffic_of(prepared.captured), rules
    )


def hold_weights(model: onnx.ModelProto, *, bits: int, block_size: int, keep: Collection[str]) -> Compressed:
    """Put the weights of matrix products behind a DequantizeLinear.

    Args:
        model: lowered float model; changed in place.
        bits: 4 or 8.
        block_size: for 4 bits. A matrix whose inner axis is no multiple of it holds 8 bits.
        keep: captured names of the layers to leave in float.
    """
    result = Compressed(model)
    products_with_bias_apart(model)
    editor = Editor(model)
    for node in list(model.graph.node):
        name = node.name.partition(".")[0]
        weight = editor.weight(node, 1) if node.op_type == "MatMul" and name not in keep else None
        if weight is None or weight.ndim != _MATRIX_RANK:
            continue
        own = bits if bits == 8 or weight.shape[0] % block_size == 0 else 8
        editor.replace(node, _held(editor, node, weight, own, block_size))
        result.executed[name] = f"int{own}-weights"
    editor.finish()
    return result


def _held(editor: Editor, node: NodeProto, weight: np.ndarray, bits: int, block_size: int) -> list[NodeProto]:
    """The product, with its weight dequantized in front of it."""
    codes, scales = in_blocks(weight, block_size) if bits == 4 else per_column(weight)
    base = f"{node.input[1]}.q{bits}"
    zeros = np.zeros(scales.shape, np.int8)
    inputs = [
        _stored(editor, codes, base, bits),
        editor.add(scales, f"{base}.scale"),
        _stored(editor, zeros, f"{base}.zero", bits),
    ]
    wide, axis = f"{base}.dq", 0 if bits == 4 else 1
    dequantize = helper.make_node("DequantizeLinear", inputs, [wide], name=wide, axis=axis)
    if bits == 4:
        dequantize.attribute.append(helper.make_attribute("block_size", block_size))
    product = NodeProto()
    product.CopyFrom(node)
    product.input[1] = wide
    return [dequantize, product]


def in_blocks(weight: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 4-bit codes in blocks of the inner axis, rounded with the scale as float16 holds it.

    Args:
        weight: float32, shape (inner, outer), inner a multiple of `block_size`.
    Returns:
        codes int8 (inner, outer), -7 to 7; scales float32 (inner / block_size, outer), > 0.
    """
    inner, outer = weight.shape
    grouped = weight.reshape(inner // block_size, block_size, outer)
    scales = _scales(np.abs(grouped).max(1), _LIMIT[4])
    codes = np.clip(np.rint(grouped / scales[:, None]), -_LIMIT[4], _LIMIT[4])
    return codes.reshape(inner, outer).astype(np.int8), scales


def per_column(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit codes, one scale per output channel.

    Args:
        weight: float32, shape (inner, outer).
    Returns:
        codes int8 (inner, outer), -127 to 127; scales float32 (outer,), > 0.
    """
    scales = _scales(np.abs(weight).max(0), _LIMIT[8])
    return np.clip(np.rint(weight / scales), -_LIMIT[8], _LIMIT[8]).astype(np.int8), scales


def _scales(largest: np.ndarray, limit: int) -> np.ndarray:
    """largest / limit as float16 holds it: 1 where all is zero, and never below float16's smallest normal number."""
    smallest = float(np.finfo(np.float16).tiny)
    scales = np.maximum(largest / limit, smallest).astype(np.float16).astype(np.float32)
    return np.where(largest == 0, np.float32(1.0), scales)


def _stored(editor: Editor, codes: np.ndarray, name: str, bits: int) -> str:
    """Store codes; of 4 bits two in a byte, the first in its low half, as the standard packs them."""
    if bits == 8:
        return editor.add(codes, name)
    flat = codes.reshape(-1).astype(np.uint8) & 0xF
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    packed = (flat[0::2] | (flat[1::2] << 4)).tobytes()
    return editor.add_tensor(helper.make_tensor(name, TensorProto.INT4, codes.shape, packed, raw=True))
