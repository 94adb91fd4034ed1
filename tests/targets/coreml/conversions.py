"""Conversions of tiny models for the tests of this folder: straight through the plugin, without parity or profile."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from deploykit.capture import capture
from deploykit.contract.precision import Precision
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.steps import lower, prepare
from deploykit.plugin.target import Payload

NEEDS_COREMLTOOLS = pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed")


def convert(
    example: tuple[Any, Any],
    folder: Path,
    *,
    target: str = "iphone-15",
    precision: Precision = Precision.FP16,
    options: dict[str, Any] | None = None,
    **capturing: Any,
) -> Payload:
    """Capture and convert a model of the zoo into `folder`."""
    model, inputs = example
    request = make_request(target, precision, options=options)
    return lower(prepare(request, capture(model.eval(), example_inputs=inputs, **capturing)), folder)
