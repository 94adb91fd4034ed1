"""What a placement plans, counted. Targets replace it by what they count in the file they produced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.achieved import Achieved, LayerAchieved

if TYPE_CHECKING:
    from deploykit_calibration.placement import QuantizedGraph


def planned(quantized: QuantizedGraph, *, requested: str = "int8", float_precision: str = "float32") -> Achieved:
    """Count layers, multiply-accumulates and weights of a placement.

    Args:
        quantized: what `place` made.
        requested: the precision that the user asked for.
        float_precision: what layers that are not int8 compute in.
    """
    layers = (
        LayerAchieved(
            name=layer.name,
            module_path=layer.module_path,
            op=layer.kind,
            precision="int8" if layer.precision == "int8" else float_precision,
            macs=layer.macs,
            weights=layer.weights,
            reason=layer.reason,
        )
        for layer in quantized.layers
    )
    return Achieved.count(requested, layers, source=f"planned placement of scheme {quantized.scheme.name}")
