"""Capture: a PyTorch model as one flat, normalised, float graph, with the origin of every node.

`capture(model)` gives a `CapturedModel`; `calibration_source(model)` the data a model brings along. This package
imports torch: import it inside functions.
"""

from deploykit.capture.capture import capture
from deploykit.capture.inputs import InputTree
from deploykit.capture.model import CapturedModel
from deploykit.capture.origins import Origin
from deploykit.capture.recurrent import unroll_recurrent
from deploykit.capture.sources import calibration_source, open_model

__all__ = [
    "CapturedModel",
    "InputTree",
    "Origin",
    "calibration_source",
    "capture",
    "open_model",
    "unroll_recurrent",
]
