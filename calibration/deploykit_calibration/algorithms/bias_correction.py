"""Bias correction: the shift of a layer's mean that rounding its weight causes is taken out of its bias.

From the means in the statistics alone; see `deploykit_calibration.bias` for the formula.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit_calibration.algorithms import ROUNDED, STATISTICS, Algorithm

if TYPE_CHECKING:
    from deploykit_calibration.algorithms import Samples
    from deploykit_calibration.prepared import Prepared


def correct_biases(prepared: Prepared, samples: Samples) -> Prepared:
    """The same model, whose placement corrects biases."""
    del samples
    return replace(prepared, corrects_bias=True)


BIAS_CORRECTION = Algorithm(
    "bias-correction",
    correct_biases,
    cost="none that shows",
    needs=frozenset({STATISTICS}),
    acts_on=frozenset({ROUNDED}),
    source="Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019)",
)
