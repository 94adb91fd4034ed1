"""Where MIGraphX's bindings are on this machine; the session itself is the recipe's (`_recipe/session.py`)."""

from __future__ import annotations

from pathlib import Path

from deploykit_targets._recipe.host import interpreter_with

PROGRAM = "build_model.py"
_DRIVER = Path("/dev/kfd")


def interpreter() -> str | None:
    """A Python that has MIGraphX's bindings and NumPy; None where there is none, or no AMD driver.

    Without the driver's device node nothing can run, and the `migraphx` on the package index is an empty placeholder.
    """
    return interpreter_with("migraphx", "numpy") if _DRIVER.exists() else None
