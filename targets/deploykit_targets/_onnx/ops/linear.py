"""Matrix products: linear, mm, bmm, matmul, addmm, einsum, attention.

A constant weight is stored the way the runtimes multiply it, (in, out), so that no Transpose is left in the file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from deploykit.capture.calls import bind
from deploykit_targets._onnx.ops.quantisation import per_channel
from deploykit_targets._onnx.ops.table import Call, tensor_meta, translates

_PER_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"


@translates("aten.linear.default")
def linear(c: Call) -> str:
    """`x @ weight.T + bias`: Gemm for a matrix, MatMul and Add for more axes."""
    if c.meta("input").dim() == 2:
        bias = [c.value("bias")] if c.get("bias") is not None else []
        return c.op("Gemm", c.value("input"), c.value("weight"), *bias, transB=1)
    product = c.op("MatMul", c.value("input"), transposed_weight(c, c["weight"]))
    return c.op("Add", product, c.value("bias")) if c.get("bias") is not None else product


def transposed_weight(c: Call, weight: Node) -> str:
    """A (out, in) weight as (in, out); stored transposed when it is a constant that only products read."""
    per_axis = str(weight.target) == _PER_CHANNEL
    stored: Any = weight.args[0] if per_axis else weight
    tensor = c.source.constant_of(stored)
    if tensor is None or not _only_products_read(stored):
        return c.op("Transpose", c.name_of(weight), perm=[1, 0])
    name = c.source.transposed(stored)
    if not per_axis:
        return name
    dequantize = Call(weight, bind(weight), c.writer, c.source)
    return per_channel(dequantize, name, 1 - c.axis(dequantize["axis"], 2))


def _only_products_read(node: Any) -> bool:
    """Whether nothing but linear layers (through a dequantise) read a weight, else both layouts would be stored."""
    readers = [reader for user in node.users for reader in (user.users if str(user.target) == _PER_CHANNEL else [user])]
    return all(str(reader.target) == "aten.linear.default" for reader in readers)


@translates("aten.mm.default", "aten.bmm.default", "aten.matmul.default", "aten.mv.default", "aten.dot.default")
def matmul(c: Call) -> str:
    """Batched matrix product with NumPy broadcasting."""
    left, right = list(c.arguments.values())[:2]
    return c.op("MatMul", c.name_of(left), c.name_of(right))


@translates("aten.addmm.default", "aten.baddbmm.default")
def addmm(c: Call) -> str:
    """`beta * self + alpha * (a @ b)`."""
    names = ("mat1", "mat2") if "mat1" in c.arguments else ("batch1", "batch2")
    left, right = (c.value(name) for name in names)
    if names[0] == "mat1":
        return c.op("Gemm", left, right, c.value("self"), alpha=float(c["alpha"]), beta=float(c["beta"]))
    product = c.op("MatMul", left, right)
    if c["alpha"] != 1:
        product = c.op("Mul", product, c.constant(c["alpha"]))
    base = c.value("self") if c["beta"] == 1 else c.op("Mul", c.value("self"), c.constant(c["beta"]))
    return c.op("Add", base, product)


@translates("aten.einsum.default")
def einsum(c: Call) -> str:
    """Einsum with the same equation."""
    return c.op("Einsum", *(c.name_of(tensor) for tensor in c["tensors"]), equation=c["equation"].replace(" ", ""))


@translates("aten.scaled_dot_product_attention.default")
def attention(c: Call) -> str:
    """softmax(q k' scale + mask) v, written out; a boolean mask becomes a large negative number."""
    query, rank = c.meta("query"), c.meta("query").dim()
    if c.get("enable_gqa"):
        raise NotImplementedError("grouped-query attention; the capture expands it")
    scale = c.get("scale", 1 / math.sqrt(int(query.shape[-1])))
    perm = [*range(rank - 2), rank - 1, rank - 2]
    scaled = c.op("Mul", c.value("query"), c.constant(scale))
    scores = c.op("MatMul", scaled, c.op("Transpose", c.value("key"), perm=perm))
    mask = c.get("attn_mask")
    if c["is_causal"]:
        mask_value = _causal(c, query.shape[-2], c.meta("key").shape[-2])
        scores = c.op("Add", scores, mask_value)
    elif mask is not None and tensor_meta(mask).dtype == torch.bool:
        blocked = c.op("Where", c.name_of(mask), c.constant(0.0), c.constant(-30000.0))
        scores = c.op("Add", scores, blocked)
    elif mask is not None:
        scores = c.op("Add", scores, c.name_of(mask))
    return c.op("MatMul", c.op("Softmax", scores, axis=rank - 1), c.value("value"))


def _causal(c: Call, queries: Any, keys: Any) -> str:
    if not (isinstance(queries, int) and isinstance(keys, int)):
        raise NotImplementedError("a causal mask over a dynamic sequence length")
    return c.constant(torch.full((queries, keys), -30000.0).triu(1))
