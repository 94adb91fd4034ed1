"""The steps between a captured model and a payload, to be called one by one; `export` is all of them in a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.plugin.registry import toolchain
from deploykit.plugin.target import Payload, Target

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared


def prepare(
    request: Request, captured: CapturedModel, run: CalibrationRun | None = None, *, target: Target | None = None
) -> Prepared:
    """Place the target's scheme on a captured model, and run the algorithms that were asked for.

    Args:
        request: what the artifact shall be.
        captured: of `capture`; the same for every target.
        run: of `calibrate`; None where the precision needs no statistics.
        target: the plugin; None for the one that the request names.
    Raises:
        CalibrationError: scheme or algorithm need statistics or samples, and there are none.
        UsageError: a pattern or an algorithm does not exist.
    """
    from deploykit_calibration.prepare import prepare as place

    target = target or toolchain(request.toolchain)
    adapted = target.adapt(captured)
    scheme = target.scheme(request, adapted)
    model = captured.fingerprint
    if run is None:
        return place(request, adapted, scheme, fingerprint=model)
    return place(request, adapted, scheme, table=run.table, samples=run.samples, fingerprint=model)


def lower(prepared: Prepared, folder: Path, *, target: Target | None = None) -> Payload:
    """Write the payload files of a prepared model into an empty folder.

    Args:
        target: the plugin; None for the one that the request names.
    Raises:
        UnsupportedPrecisionError, MissingDependencyError: the toolchain cannot make it, or not here.
        ConversionError: the converter refused; the message names op, module path and source line.
    """
    target = target or toolchain(prepared.request.toolchain)
    target.check_precision(prepared.precision, prepared.device)
    target.check_installed(export=True)
    return target.lower(prepared, folder)
