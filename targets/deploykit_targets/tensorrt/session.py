"""Where TensorRT's bindings are on this machine; the session itself is the program's (`_on_device/session.py`)."""

from __future__ import annotations

from deploykit_targets._on_device.host import interpreter_with


def interpreter() -> str | None:
    """A Python that has TensorRT's bindings and NumPy: ours, or the system's on a Jetson; None where neither has."""
    return interpreter_with("tensorrt", "numpy")
