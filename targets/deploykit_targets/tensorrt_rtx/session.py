"""Where the bindings of TensorRT for RTX are; the session itself is the build program's (`_on_device/session.py`)."""

from __future__ import annotations

from deploykit_targets._on_device.host import interpreter_with


def interpreter() -> str | None:
    """A Python that has the bindings and NumPy: ours, or the system's; None where neither has."""
    return interpreter_with("tensorrt_rtx_bindings", "numpy")
