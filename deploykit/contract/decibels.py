"""Signal to noise in decibels, with a cap at both ends."""

from __future__ import annotations

import numpy as np

# float32 outputs carry ~150 dB at most; exact equality is reported as the cap, a useless output as its negative.
SQNR_CAP_DB = 200.0


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers, capped at ±`SQNR_CAP_DB`; no noise at all is the cap."""
    if noise <= 0.0:
        return SQNR_CAP_DB
    if signal <= 0.0:
        return -SQNR_CAP_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -SQNR_CAP_DB, SQNR_CAP_DB))
