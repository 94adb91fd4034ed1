"""Hugging Face models bring `dummy_inputs`, of a batch of 3 and 5 tokens that nobody means: their axes stay free.

The batch of every input and the length of token inputs are dynamic unless the user says otherwise; where the model
fixes one of them, fewer are. What was chosen is a remark of the captured model, which the parity report repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from deploykit.capture.dynamic import BATCH
from deploykit.capture.model import CapturedModel
from deploykit.contract.errors import CaptureError, UsageError

SEQUENCE = "sequence"
_INSTEAD = "pass example_inputs= (an attention mask with them, say), and dynamic_shapes=, for others"


def with_free_axes(offered: Mapping[str, Any], capture: Callable[[Any], CapturedModel]) -> CapturedModel:
    """Capture a model with its own dummy inputs and as many dynamic axes as it takes.

    Args:
        offered: the dummy inputs by name.
        capture: captures the model with the dynamic shapes that it is given, or with fixed ones (None).
    Raises:
        CaptureError: not even fixed shapes can be captured.
    """
    for shapes in _candidates(offered):
        try:
            captured = capture(shapes)
        except (CaptureError, UsageError):
            continue
        return replace(captured, remarks=(*captured.remarks, _remark(captured)))
    captured = capture(None)
    return replace(captured, remarks=(*captured.remarks, _remark(captured)))


def _candidates(offered: Mapping[str, Any]) -> Iterator[dict[str, dict[int, str]]]:
    tensors = {name: x for name, x in offered.items() if isinstance(x, Tensor) and x.dim()}
    batch = {name: {0: BATCH} for name in tensors}
    tokens = {name: {1: _length(name)} for name, x in tensors.items() if x.dim() == 2 and not x.is_floating_point()}
    if tokens:
        yield {name: {**axes, **tokens.get(name, {})} for name, axes in batch.items()}
    if tensors:
        yield batch


def _length(name: str) -> str:
    """What the length of an input is called: that of a decoder is its own."""
    return f"decoder_{SEQUENCE}" if name.startswith("decoder_") else SEQUENCE


def _remark(captured: CapturedModel) -> str:
    inputs = ", ".join(map(str, captured.inputs))
    free = list(captured.symbol_ranges)
    limits = [f"{name} up to {high}" for name, (_, high) in captured.symbol_ranges.items() if high is not None]
    said = f"{' and '.join(free)} may have any size" if free else "the model takes no other sizes"
    return f"inputs are the model's own dummy_inputs, {inputs}: {said}{f' ({limits[0]})' if limits else ''}; {_INSTEAD}"
