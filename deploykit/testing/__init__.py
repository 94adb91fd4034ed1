"""What a target's author needs to test it: a conformance suite and a zoo of tiny models.

    from deploykit.testing import TargetConformance

    class TestMyTarget(TargetConformance):
        target = "my-board"

Needs pytest and PyTorch; nothing here is imported by deploykit itself.
"""

from __future__ import annotations

from deploykit.testing.conformance import TargetConformance

__all__ = ["TargetConformance"]
