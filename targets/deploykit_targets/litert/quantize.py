"""Precisions that ai-edge-quantizer writes into a float .tflite file.

Its own calibration is not used: it is a moving average, which clips. For int16x8 it gets the ranges of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit_targets._float16.values import fits_float16
from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.count import layer_outputs
from deploykit_targets.litert.file_ranges import Range, file_ranges, pad_within, without_range

# name of the request -> what is called on the quantizer
VENDOR_PRECISIONS = ("fp16", "int8-dynamic", "int8-weight-only", "int4-weight-only", "int16x8")


def quantize(path: Path, precision: str | None, kept_float: list[str], ranges: Mapping[str, Range]) -> None:
    """Quantize a float file in place.

    Args:
        path: the file.
        precision: one of `VENDOR_PRECISIONS`; None leaves the file as it is.
        kept_float: layers of the captured graph that stay as they are.
        ranges: the ranges of the captured graph's nodes, for int16x8; see `file_ranges`.
    """
    if precision is None:
        return
    from ai_edge_quantizer import quantizer

    model = flatbuffer.read(path)
    found = file_ranges(model, ranges) if precision == "int16x8" else None
    if found is not None:
        pad_within(model, found)
        flatbuffer.write(model, path)
    tool: Any = quantizer.Quantizer(bytearray(path.read_bytes()))
    _configure(tool, precision)
    kept: set[tuple[str, ...]] = {(name,) for name in layer_outputs(model, kept_float)}
    kept.update(without_range(model, found) if found is not None else ())
    kept.update((name,) for name in _beyond_float16(model) if precision == "fp16")
    for names in sorted(kept):
        tool.update_quantization_recipe(_scope(names), "*", algorithm_key="no_quantize")
    result = tool.quantize(None if found is None else _as_arrays(found), enable_progress_report=False)
    path.write_bytes(bytes(result.quantized_model))


def _beyond_float16(model: Any) -> set[str]:
    """Outputs of the operators whose weights float16 does not hold: of the file, where factors are folded into them."""
    graph = model.subgraphs[0]
    found = set()
    for op in graph.operators:
        for index in (() if op.inputs is None else op.inputs)[:2]:
            tensor = graph.tensors[index] if index >= 0 else None
            if tensor is None or flatbuffer.type_name(tensor) != "FLOAT32":
                continue
            if not fits_float16(flatbuffer.constant(model, index)):
                found.add(flatbuffer.text(graph.tensors[op.outputs[0]].name))
    return found


def round_at_run_time(path: Path, layers: list[str]) -> None:
    """Give float linear layers of a file int8 weights, and inputs that are rounded when it runs; in place."""
    if not layers:
        return
    from ai_edge_quantizer import qtyping, quantizer

    tool: Any = quantizer.Quantizer(bytearray(path.read_bytes()))
    for name in sorted(layer_outputs(flatbuffer.read(path), layers)):
        tool.add_dynamic_config(_scope((name,)), qtyping.TFLOperationName.FULLY_CONNECTED, num_bits=8)
    path.write_bytes(bytes(tool.quantize(enable_progress_report=False).quantized_model))


def _scope(names: tuple[str, ...]) -> str:
    """The pattern of one operator: the quantizer knows it by the names of its outputs, each with a separator."""
    return f"^{re.escape(';'.join(names))};$"


def _as_arrays(ranges: Mapping[str, Range]) -> dict[str, dict[str, Any]]:
    import numpy as np

    return {
        name: {"min": np.array([[lo]], np.float32), "max": np.array([[hi]], np.float32)}
        for name, (lo, hi) in ranges.items()
    }


def _configure(tool: Any, precision: str) -> None:
    from ai_edge_quantizer import qtyping

    every = qtyping.TFLOperationName.ALL_SUPPORTED
    match precision:
        case "int8-dynamic":
            tool.add_dynamic_config(".*", every, num_bits=8)
        case "int8-weight-only":
            tool.add_weight_only_config(".*", every, num_bits=8)
        case "int4-weight-only":
            tool.add_weight_only_config(".*", every, num_bits=4)
        case "int16x8":
            tool.add_static_config(".*", every, activation_num_bits=16, weight_num_bits=8)
        case "fp16":
            weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
            config = qtyping.OpQuantizationConfig(
                weight_tensor_config=weights,
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            )
            for kind in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "EMBEDDING_LOOKUP"):
                operation = getattr(qtyping.TFLOperationName, kind)
                tool.update_quantization_recipe(".*", operation, config, algorithm_key="float_casting")
