"""Sensitivity: where a quantised model's noise comes from, and what keeping layers in float would gain.

    found = sensitivity(prepared, samples)
    found.layers            # ranking: module path, kind, share of the noise, cost of keeping it in float
    found.keep(4)           # the four layers whose rounding costs most, with the SQNR that is predicted without it
    found.front()           # Pareto front of predicted SQNR, cost and share of quantised multiply-accumulates

What is scored is roundings, not layers: every tensor that is read rounded, and every weight. A candidate is planned
by the target's own scheme, which says what is still rounded; nothing of it is run. Nothing here writes a q/dq node.
"""

from __future__ import annotations

from deploykit_calibration.sensitivity.candidates import Candidate, front
from deploykit_calibration.sensitivity.costs import Cost, Costs, costs_of, measured
from deploykit_calibration.sensitivity.meeting import Met, Tried, meet
from deploykit_calibration.sensitivity.ranking import LayerSensitivity, Sensitivity, sensitivity

__all__ = [
    "Candidate",
    "Cost",
    "Costs",
    "LayerSensitivity",
    "Met",
    "Sensitivity",
    "Tried",
    "costs_of",
    "front",
    "measured",
    "meet",
    "sensitivity",
]
