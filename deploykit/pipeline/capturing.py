"""What a user passes as a model, and beside it, as a captured model and calibration data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import UsageError

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel


def captured_of(
    model: Any,
    example_inputs: Any,
    data: Any = None,
    *,
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    check: Callable[[Any], None] = lambda data: None,
) -> tuple[CapturedModel, Any]:
    """Capture a model, unless it is captured already.

    Args:
        model, example_inputs, data, dynamic_batch, dynamic_shapes: as `deploykit.export` takes them.
        check: is given the data, the model's own where none was passed, before anything is captured.
    Returns:
        The captured model, and the data; None where there are none.
    Raises:
        UsageError: no model, or inputs and shapes beside a model that is captured already.
        CaptureError: the model cannot be traced.
    """
    from deploykit.capture import CapturedModel, capture, open_model

    if isinstance(model, CapturedModel):
        if example_inputs is not None or dynamic_batch or dynamic_shapes is not None:
            hint = "give them to deploykit.pipeline.capture"
            raise UsageError(
                "a captured model has its inputs and shapes: example_inputs and dynamic_* change nothing", hint=hint
            )
        check(data)
        return model, data
    found, inputs, data = open_model(model, example_inputs, data)
    check(data)
    return capture(found, example_inputs=inputs, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes), data
