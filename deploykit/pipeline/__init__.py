"""From a model to a published artifact, step by step; each step can be called by itself.

See `deploykit.pipeline.steps`. Everything is resolved at first use, so that importing this loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.pipeline.plan import make_request as request
    from deploykit.pipeline.steps import calibrate, capture, judge, lower, prepare

__all__ = ["calibrate", "capture", "judge", "lower", "prepare", "request"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, own = ("plan", "make_request") if name == "request" else ("steps", name)
    return getattr(importlib.import_module(f"{__name__}.{home}"), own)
