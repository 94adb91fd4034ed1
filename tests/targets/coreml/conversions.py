"""Conversions of tiny models for the tests of this folder: straight through the plugin, without parity or profile."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from deploykit.capture import capture
from deploykit.contract.precision import Precision
from deploykit.plugin.registry import resolve
from deploykit.plugin.target import Conversion, ConversionJob

NEEDS_COREMLTOOLS = pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed")


def convert(
    example: tuple[Any, Any],
    folder: Path,
    *,
    target: str = "iphone-15",
    precision: Precision = Precision.FP16,
    options: dict[str, Any] | None = None,
    **capturing: Any,
) -> Conversion:
    """Capture and convert a model of the zoo into `folder`."""
    model, inputs = example
    found = resolve(target)
    job = ConversionJob(
        captured=capture(model.eval(), example_inputs=inputs, **capturing),
        precision=precision,
        device=found.device,
        folder=folder,
        options=found.target.parse_options(options),
    )
    return found.target.convert(job)
