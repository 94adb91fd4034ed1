"""`deploykit.calibrate`: activation statistics of a model on data, once, for all targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.pipeline.capturing import captured_of

if TYPE_CHECKING:
    from deploykit_calibration.table import CalibrationTable


def calibrate(
    model: Any,
    data: Any,
    *,
    example_inputs: Any = None,
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    extend: CalibrationTable | None = None,
    limit: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> CalibrationTable:
    """Observe a model on data in one streaming pass.

    Args:
        model, example_inputs, dynamic_batch, dynamic_shapes: as `deploykit.export` takes them.
        data: as `calibration=` of `deploykit.export`; None takes the model's own.
        extend: an older table of this model, to which the new samples are added.
        limit: use at most this many samples.
        cache_dir: keep the statistics here and reuse them for the same model and data.
        progress: show a bar on a terminal.
    Returns:
        Mergeable statistics; pass them as `calibration=` to any number of exports.
    Raises:
        CaptureError: the model cannot be traced.
        CalibrationError: the data is empty, malformed or not finite.
    """
    from deploykit_calibration.observe import calibrate as observe

    captured, data = captured_of(
        model, example_inputs, data, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes
    )
    return observe(captured, data, progress=progress, cache_dir=cache_dir, extend=extend, limit=limit)
