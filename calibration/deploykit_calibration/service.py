"""What the pipeline, a layer below, asks of this package: an entry point of the group `deploykit.services`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.capture import CapturedModel
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.table import CalibrationTable


class Service:
    """See `deploykit._calibration.CalibrationService`; PyTorch is imported when a method is called."""

    @property
    def table_type(self) -> type[CalibrationTable]:
        """The class of calibration tables; loading it needs no PyTorch."""
        from deploykit_calibration.table import CalibrationTable

        return CalibrationTable

    def run_calibration(
        self,
        captured: CapturedModel,
        data: Any,
        *,
        progress: bool,
        cache_dir: str | Path | None,
        extend: CalibrationTable | None = None,
        limit: int | None = None,
        hold_out: bool = False,
    ) -> CalibrationRun:
        """Observe the model over the data, but for what is held back."""
        from deploykit_calibration.observe import run_calibration

        return run_calibration(
            captured, data, progress=progress, cache_dir=cache_dir, extend=extend, limit=limit, hold_out=hold_out
        )

    def first_samples(self, captured: CapturedModel, data: Any, *, limit: int) -> list[dict[str, Tensor]]:
        """The first `limit` samples of calibration data, checked as for calibration; none where it is a table."""
        from deploykit_calibration.observe import first_samples

        return first_samples(captured, data, limit=limit)


SERVICE = Service()
