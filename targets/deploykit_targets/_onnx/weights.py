"""Precisions that change weights only: float16, int8 or int4 weight-only, and ONNX Runtime's dynamic int8.

Each takes a lowered float model, changes it in place, and says of every layer what it became.
Forms: products become MatMulNBits (one scale per block of the inner axis; activations stay float32 between
operators); convolutions and embeddings hold int8 tables that standard operators expand, convolutions once, when the
model is loaded, embeddings row by row. Recurrent layers keep their weights: their kernels take float ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper

from deploykit.contract.formats import TensorScheme
from deploykit.contract.quiet import kept_quiet
from deploykit_calibration.grouped import in_groups
from deploykit_targets._onnx.edit import Editor
from deploykit_targets._onnx.retype import FLOAT16, retype

_CONTRIB = "com.microsoft"


@dataclass(eq=False)
class Compressed:
    """A model whose weights were compressed.

    Attributes:
        model: the model, changed in place.
        executed: captured node name -> what the file makes it compute in (`float16`, `int8`) or hold its weights as
            (`int8-weights`, `int4-weights`). What a runtime makes of that, `count.count` tells.
        log: what converters printed.
    """

    model: onnx.ModelProto
    executed: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


def _captured(name: str) -> str:
    """The captured node behind a node name: an operator written as several nodes names them `captured.part`."""
    return name.partition(".")[0]


def _kept_nodes(model: onnx.ModelProto, keep: Collection[str]) -> list[str]:
    """Names of the nodes that belong to the layers of `keep`."""
    return [node.name for node in model.graph.node if _captured(node.name) in keep]


# Weight-only.


def weight_only(model: onnx.ModelProto, forms: Mapping[str, TensorScheme], *, accuracy_level: int = 4) -> Compressed:
    """Weights in the forms that they were placed in, activations in float.

    Args:
        model: lowered float model; changed in place.
        forms: the forms of the weights of layers, by captured name: blocks for products, channels for convolutions and
            embeddings. Other layers stay as they are.
        accuracy_level: the accuracy level of MatMulNBits: 4 rounds the activations of a block to int8 inside the
            kernel, 1 computes in float32. With 4, one row is 3 to 6 times faster than in float and 128 rows 10 to 20 %
            slower; with 1, ONNX Runtime 1.31 has no kernel for 8 bits and unpacks the weights in every run, 14 times
            slower than float at one row. It costs 1 dB at 8 bits and nothing at 4.
    """
    result = Compressed(model)
    products_with_bias_apart(model)
    editor = Editor(model)
    writers: dict[str, Callable[[NodeProto, np.ndarray, TensorScheme], list[NodeProto]]] = {
        "MatMul": lambda node, weight, form: _blockwise(editor, node, weight, form, accuracy_level),
        "Conv": lambda node, weight, form: _expanded_when_loaded(editor, node, weight, form),
        "Gather": lambda node, table, form: _rows(editor, node, table, form),
    }
    for node in list(model.graph.node):
        form = forms.get(_captured(node.name))
        if form is None or node.op_type not in writers:
            continue
        weight = editor.weight(node, 0 if node.op_type == "Gather" else 1)
        if weight is not None and weight.ndim >= 2 and not (node.op_type == "MatMul" and weight.ndim != 2):
            editor.replace(node, writers[node.op_type](node, weight, form))
            result.executed[_captured(node.name)] = f"int{form.bits}-weights"
    editor.finish()
    return result


def blockwise_symmetric(weight: np.ndarray, form: TensorScheme) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in blocks along its inner axis, in the layout of MatMulNBits.

    The element of largest magnitude gets the code furthest from zero, which the unsigned code 0 is: its value is
    exact, and the grid is as fine as the bits allow.

    Args:
        weight: float32, shape (inner, outer).
        form: 4 or 8 bits in blocks, the `furthest` element at their end.
    Returns:
        codes uint8 (outer, blocks, block_size * bits / 8), two per byte for 4 bits, low half first;
        scales float32 (outer, blocks), of either sign, 0 for a block of zeros.
    """
    found = in_groups(torch.tensor(weight.T), form)
    codes = (found.codes - form.quant_min).to(torch.uint8).numpy()
    scales = torch.where(found.codes.any(-1), found.scales[..., 0], 0.0).numpy()
    return (codes[..., 0::2] | (codes[..., 1::2] << 4) if form.bits == 4 else codes), scales


def _blockwise(editor: Editor, node: NodeProto, weight: np.ndarray, form: TensorScheme, level: int) -> list[NodeProto]:
    codes, scales = blockwise_symmetric(weight, form)
    base, block_size = node.input[1], codes.shape[-1] * 8 // form.bits
    inputs = [node.input[0], editor.add(codes, f"{base}.q{form.bits}"), editor.add(scales, f"{base}.scales")]
    attributes = {"K": weight.shape[0], "N": weight.shape[1], "bits": form.bits, "block_size": block_size}
    return [
        helper.make_node(
            "MatMulNBits", inputs, node.output, name=node.name, domain=_CONTRIB, accuracy_level=level, **attributes
        )
    ]


def _per_channel(weight: np.ndarray, form: TensorScheme) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes with one scale per entry of axis 0, the scales shaped to multiply."""
    found = in_groups(torch.tensor(weight), form)
    scales = found.scales.reshape(-1, *[1] * (weight.ndim - 1)).numpy()
    return found.codes.reshape(weight.shape).to(torch.int8).numpy(), scales


def _expanded_when_loaded(editor: Editor, node: NodeProto, weight: np.ndarray, form: TensorScheme) -> list[NodeProto]:
    """Cast and Mul of constants, which runtimes fold when they load.

    ONNX Runtime never folds a DequantizeLinear: MobileNetV2 took twice the time with one per convolution.
    """
    codes, scales = _per_channel(weight, form)
    base = node.input[1]
    cast, scaled = f"{base}.cast", f"{base}.float"
    expanded = [
        helper.make_node("Cast", [editor.add(codes, f"{base}.q8")], [cast], name=cast, to=TensorProto.FLOAT),
        helper.make_node("Mul", [cast, editor.add(scales, f"{base}.scales")], [scaled], name=scaled),
    ]
    convolution = NodeProto()
    convolution.CopyFrom(node)
    convolution.input[1] = scaled
    return [*expanded, convolution]


def _rows(editor: Editor, node: NodeProto, table: np.ndarray, form: TensorScheme) -> list[NodeProto]:
    """Rows of an int8 table and of its scales, gathered by the same indices and multiplied."""
    codes, scales = _per_channel(table, form)
    base, name = node.input[0], node.name
    picked = [f"{name}.codes", f"{name}.scale", f"{name}.cast"]
    tables = (editor.add(codes, f"{base}.q8"), editor.add(scales, f"{base}.scales"))
    gathers = [
        helper.make_node("Gather", [stored, node.input[1]], [out], name=out, axis=0)
        for stored, out in zip(tables, picked, strict=False)
    ]
    cast = helper.make_node("Cast", [picked[0]], [picked[2]], name=picked[2], to=TensorProto.FLOAT)
    return [*gathers, cast, helper.make_node("Mul", [picked[2], picked[1]], node.output, name=name)]


def products_with_bias_apart(model: onnx.ModelProto) -> None:
    """Gemm with a constant matrix -> MatMul and Add, the form that weight compression knows; in place."""
    editor = Editor(model)
    for node in list(model.graph.node):
        weight = editor.weight(node, 1) if node.op_type == "Gemm" else None
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if weight is None or attributes.get("transA") or {attributes.get(key, 1.0) for key in ("alpha", "beta")} != {1}:
            continue
        matrix = weight.T if attributes.get("transB") else weight
        stored = editor.add(np.ascontiguousarray(matrix), node.input[1])
        biased = len(node.input) > 2
        product = f"{node.name}.product" if biased else node.output[0]
        nodes = [helper.make_node("MatMul", [node.input[0], stored], [product], name=node.name)]
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], node.output, name=f"{node.name}.bias"))
        editor.replace(node, nodes)
    editor.finish()


# Dynamic int8.


_LSTM = ("LSTM",)


def dynamic_int8(model: onnx.ModelProto, *, reduce_range: bool = False, keep: Collection[str] = ()) -> Compressed:
    """int8 weights per channel; activations quantised in each run (ONNX Runtime's own quantizer).

    Products, LSTMs and embeddings; convolutions stay float, whose dynamic kernels are slower than float ones.

    Args:
        reduce_range: 7-bit weights, for processors without VNNI, whose 16-bit sums would saturate.
        keep: captured names of the layers to leave in float.
    """
    products_with_bias_apart(model)
    return _rounded_when_run(model, ("MatMul", *_LSTM), ("Gather",), reduce_range, keep)


def dynamic_lstms(model: onnx.ModelProto, *, reduce_range: bool = False, keep: Collection[str] = ()) -> Compressed:
    """The LSTMs of a statically quantised model, see `dynamic_int8`; the rest stays as it is."""
    if not any(node.op_type in _LSTM for node in model.graph.node):
        return Compressed(model)
    betas = _with_beta(model, {node.output[0]: _OTHER_BETA for node in model.graph.node if node.op_type == "Gemm"})
    result = _rounded_when_run(model, _LSTM, (), reduce_range, keep)
    _with_beta(result.model, betas)
    return result


_OTHER_BETA = 2.0


def _with_beta(model: onnx.ModelProto, betas: Mapping[str, float]) -> dict[str, float]:
    """Set `beta` of products by their results, and give what it was.

    ONNX Runtime's quantizer makes a MatMul of every Gemm whose `beta` is 1, and with that two values of one name where
    steps share a weight, and a kernel that adds the bias in float; those of another `beta` it leaves as they are.
    """
    before = {}
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.output[0] in betas:
            found = next((item for item in node.attribute if item.name == "beta"), None)
            before[node.output[0]] = 1.0 if found is None else found.f
            if found is not None:
                node.attribute.remove(found)
            if betas[node.output[0]] != 1.0:
                node.attribute.append(helper.make_attribute("beta", betas[node.output[0]]))
    return before


def _rounded_when_run(
    model: onnx.ModelProto, layers: tuple[str, ...], tables: tuple[str, ...], reduce_range: bool, keep: Collection[str]
) -> Compressed:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    result = Compressed(model)
    kept = _kept_nodes(model, keep)
    written = [node.name for node in model.graph.node if node.op_type in layers]
    with kept_quiet(result.log), tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        path = Path(folder) / "dynamic.onnx"
        quantize_dynamic(
            model, path, op_types_to_quantize=[*layers, *tables], per_channel=True,
            reduce_range=reduce_range, weight_type=QuantType.QInt8, nodes_to_exclude=kept,
        )  # fmt: skip
        result.model = onnx.load(str(path))
    del result.model.graph.value_info[:]
    result.executed |= {_captured(name): "int8" for name in written if name not in kept}
    return result


# Float16.


def float16(model: onnx.ModelProto, kept: Collection[str] = ()) -> Compressed:
    """Weights and activations in float16, inputs and outputs as they were.

    Args:
        model: lowered float model; changed in place.
        kept: captured names of the operators that stay float32.

    Raises:
        ConversionError: a weight exceeds the range of float16; the message names it.
    """
    retype(model, FLOAT16, kept)
    weighted = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
    names = {_captured(node.name) for node in model.graph.node if node.op_type in weighted}
    return Compressed(model, {name: "float32" if name in kept else "float16" for name in names})
