"""Weights of a float ML Program as 8- and 4-bit integers or as palettes; activations stay float16."""

from __future__ import annotations

from typing import Any

from deploykit.contract.precision import Precision
from deploykit_calibration.palette import palettize

WEIGHT_ONLY = frozenset(
    {Precision.INT8_WEIGHT_ONLY, Precision.INT4_WEIGHT_ONLY, Precision.INT4_PALETTE, Precision.INT6_PALETTE}
)
PALETTE_BITS = {Precision.INT4_PALETTE: 4, Precision.INT6_PALETTE: 6}


def compress(model: Any, precision: Precision, *, threshold: int, block_size: int) -> Any:
    """Compress the weights of a coremltools `MLModel`.

    Args:
        precision: one of `WEIGHT_ONLY`.
        threshold: weights with fewer elements are left alone.
        block_size: the block size of int4, along the input channels; a weight whose channels it does not divide gets
            one scale for each output channel.
    """
    import coremltools.optimize.coreml as optimize

    limit = threshold - 1  # coremltools compresses what is larger than its threshold
    if precision in PALETTE_BITS:
        bits = PALETTE_BITS[precision]
        palette = optimize.OpPalettizerConfig(
            mode="custom", lut_function=lambda weight: palettize(weight, bits), weight_threshold=limit
        )
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=palette))
    granularities: tuple[dict[str, Any], ...] = ({"granularity": "per_channel"},)
    if precision is Precision.INT4_WEIGHT_ONLY:
        granularities = ({"granularity": "per_block", "block_size": block_size}, *granularities)
    dtype = "int4" if precision is Precision.INT4_WEIGHT_ONLY else "int8"
    for granularity in granularities:
        config = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=dtype, weight_threshold=limit, **granularity
        )
        model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=config))
    return model
