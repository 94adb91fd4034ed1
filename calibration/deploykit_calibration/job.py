"""A conversion job -> its q/dq graph: the step that every toolchain's static int8 begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from deploykit.errors import CalibrationError
from deploykit_calibration.placement import QuantizedGraph, place

if TYPE_CHECKING:
    from deploykit.target import ConversionJob
    from deploykit_calibration.scheme import QuantScheme
    from deploykit_calibration.table import CalibrationTable


def quantize(job: ConversionJob, scheme: QuantScheme) -> QuantizedGraph:
    """Place the q/dq nodes of `scheme` as the job asks: its table, method and patterns.

    Raises:
        CalibrationError: the job has no table.
        UsageError: a pattern matches nothing.
    """
    if job.table is None:
        raise CalibrationError("a static int8 conversion needs a calibration table", hint="pass calibration=")
    table = cast("CalibrationTable", job.table)
    return place(job.captured, table, scheme, method=job.method, include=job.include, exclude=job.exclude)
