"""Verdicts on an artifact: parity against the float model, and profiles, measured or estimated."""
