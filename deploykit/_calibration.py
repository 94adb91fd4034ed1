"""The seam between the pipeline and the calibration package, which lies in the layer above.

The pipeline does not import `deploykit_calibration`: it asks the entry points (group `deploykit.services`) for the
calibration service, so that the layers stay one-directional and `import deploykit` stays light.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from deploykit.errors import DeploykitError
from deploykit.target import Table

if TYPE_CHECKING:
    import torch

    from deploykit.capture import CapturedModel

GROUP = "deploykit.services"


class CalibrationRun(Protocol):
    """A finished calibration: the table, and some of the samples that it saw and that it did not."""

    @property
    def table(self) -> Table: ...
    @property
    def samples(self) -> Sequence[dict[str, torch.Tensor]]: ...
    @property
    def held_out(self) -> Sequence[dict[str, torch.Tensor]]: ...


class CalibrationService(Protocol):
    """What the pipeline asks of the calibration package."""

    @property
    def table_type(self) -> type[Any]:
        """The class of calibration tables, with `load`, `merge` and `save`."""

    def run_calibration(
        self,
        captured: CapturedModel,
        data: Any,
        *,
        progress: bool,
        cache_dir: str | Path | None,
        extend: Any = None,
        limit: int | None = None,
        hold_out: bool = False,
    ) -> CalibrationRun: ...

    def first_samples(self, captured: CapturedModel, data: Any, *, limit: int) -> list[dict[str, torch.Tensor]]: ...


def calibration_service() -> CalibrationService:
    """Load the service.

    Raises:
        DeploykitError: the installation lacks it; reinstalling mends that.
    """
    entries = tuple(importlib.metadata.entry_points(group=GROUP, name="calibration"))
    if len(entries) != 1:
        raise DeploykitError(
            f"{len(entries)} calibration services are registered under {GROUP!r}; exactly one is needed",
            hint="pip install --force-reinstall --no-deps deploykit",
        )
    return cast(CalibrationService, entries[0].load())
