"""Precisions that need no calibration, written by ai-edge-quantizer into a float .tflite file.

Its static precisions are not used: its calibration is a moving average, which clips.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.count import layer_outputs

# name of the request -> what is called on the quantizer
RECIPES = ("fp16", "int8-dynamic", "int8-weight-only", "int4-weight-only")


def quantize(path: Path, recipe: str | None, kept_float: list[str]) -> None:
    """Quantize the weights of a float file in place.

    Args:
        path: the file.
        recipe: one of `RECIPES`; None leaves the file as it is.
        kept_float: layers of the captured graph that stay as they are.
    """
    if recipe is None:
        return
    from ai_edge_quantizer import quantizer

    tool: Any = quantizer.Quantizer(bytearray(path.read_bytes()))
    _configure(tool, recipe)
    for name in sorted(layer_outputs(flatbuffer.read(path), kept_float)):
        # scopes are names of output tensors, each with a separator behind it
        tool.update_quantization_recipe(f"^{re.escape(name)};?$", "*", algorithm_key="no_quantize")
    path.write_bytes(bytes(tool.quantize(enable_progress_report=False).quantized_model))


def _configure(tool: Any, recipe: str) -> None:
    from ai_edge_quantizer import qtyping

    every = qtyping.TFLOperationName.ALL_SUPPORTED
    match recipe:
        case "int8-dynamic":
            tool.add_dynamic_config(".*", every, num_bits=8)
        case "int8-weight-only":
            tool.add_weight_only_config(".*", every, num_bits=8)
        case "int4-weight-only":
            tool.add_weight_only_config(".*", every, num_bits=4)
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
