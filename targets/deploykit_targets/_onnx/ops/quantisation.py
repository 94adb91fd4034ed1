"""quantize/dequantize nodes -> QuantizeLinear/DequantizeLinear with explicit, constant zero points."""

from __future__ import annotations

import torch

from deploykit_targets._onnx.ops.table import Call, translates
from deploykit_targets._onnx.writer import element_type

_LIMITS: dict[torch.dtype, torch.iinfo | torch.finfo] = {
    **{dtype: torch.iinfo(dtype) for dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16)},
    torch.float8_e4m3fn: torch.finfo(torch.float8_e4m3fn),
}


def scale_and_zero_point(c: Call) -> tuple[str, str]:
    """Per-tensor parameters as constants: float32 scale, zero point in the quantised dtype."""
    scale = c.writer.constant(c["scale"], torch.float32, label="scale")
    return scale, c.writer.constant(c["zero_point"], c["dtype"], label="zero_point")


@translates("quantized_decomposed.quantize_per_tensor.default")
def quantize(c: Call) -> str:
    """QuantizeLinear. It saturates to the whole dtype; a scheme with a narrower range is clipped before it.

    One step less at the negative end (-127 of int8) is not worth a Clip: values within the calibrated range are the
    same, and the Clip would stop the runtimes from fusing the pair.
    """
    _require_opset(c)
    scale, zero_point = scale_and_zero_point(c)
    value, limits = c.value("input"), _LIMITS[c["dtype"]]
    if c["quant_max"] < limits.max or c["quant_min"] > limits.min + 1:
        low, high = ((c[name] - c["zero_point"]) * c["scale"] for name in ("quant_min", "quant_max"))
        value = c.op("Clip", value, c.constant(low, torch.float32), c.constant(high, torch.float32))
    return c.op("QuantizeLinear", value, scale, zero_point)


@translates("quantized_decomposed.dequantize_per_tensor.default")
def dequantize(c: Call) -> str:
    """DequantizeLinear of an activation, or of a weight with one scale."""
    _require_opset(c)
    return c.op("DequantizeLinear", c.value("input"), *scale_and_zero_point(c))


def _require_opset(c: Call) -> None:
    if c["dtype"] in (torch.int16, torch.uint16) and c.writer.opset < 21:
        raise NotImplementedError(f"{c['dtype']} activations need opset 21, this graph has {c.writer.opset}")


@translates("quantized_decomposed.dequantize_per_channel.default")
def dequantize_channels(c: Call) -> str:
    """DequantizeLinear of a weight or bias with one scale per channel."""
    return per_channel(c, c.value("input"), c["axis"])


def per_channel(c: Call, value: str, axis: int) -> str:
    """DequantizeLinear with the scales and zero points of `c`, along another axis where the weight was transposed."""
    scales, zero_points = c.source.constant_of(c["scales"]), c.source.constant_of(c["zero_points"])
    if scales is None:
        raise NotImplementedError("scales that are not constant")
    if zero_points is None:
        zero_points = torch.zeros(scales.shape, dtype=c["dtype"])
    element_type(c["dtype"])
    scale = c.writer.constant(scales.to(torch.float32), torch.float32, label=f"{c.node.name}.scale")
    zero_point = c.writer.constant(zero_points.to(c["dtype"]), c["dtype"], label=f"{c.node.name}.zero_point")
    return c.op("DequantizeLinear", value, scale, zero_point, axis=axis)
