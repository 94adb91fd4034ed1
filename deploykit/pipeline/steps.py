"""The steps of an export, to be called one by one; `deploykit.export` is all of them in a row.

    request = pipeline.request("jetson-orin", "int8")
    captured = pipeline.capture(model, example_inputs=(x,))
    run = pipeline.calibrate(captured, loader)
    prepared = pipeline.prepare(request, captured, run)
    payload = pipeline.lower(prepared, folder)
    report = pipeline.judge(prepared, payload, folder, run)

One capture and one calibration serve any number of requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import UsageError
from deploykit.contract.progress import Advance
from deploykit.judge.parity import ParityReport, Tolerance, tolerance_of
from deploykit.pipeline.capturing import captured_of
from deploykit.pipeline.evidence import choose_samples, prove
from deploykit.pipeline.plan import needs_data
from deploykit.pipeline.staging import calibration_info, draft
from deploykit.plugin.registry import toolchain
from deploykit.plugin.target import Payload, Target

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.table import CalibrationTable


def capture(
    model: Any, *, example_inputs: Any = None, dynamic_batch: bool = False, dynamic_shapes: Any = None
) -> CapturedModel:
    """Capture a model as one flat, normalised graph; arguments as those of `deploykit.export`.

    Raises:
        UsageError, CaptureError: see `deploykit.export`.
    """
    return captured_of(model, example_inputs, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes)[0]


def calibrate(
    captured: CapturedModel, data: Any, *, cache_dir: str | Path | None = None, progress: bool | Advance = True
) -> CalibrationRun:
    """Observe a captured model over data; some samples are held back for parity.

    Args:
        data: as `calibration=` of `deploykit.export`.
        progress: show a bar on a terminal; or a function that is told how many batches of how many are done.
    Returns:
        The statistics, some samples that they are of, and those held back.
    Raises:
        CalibrationError, UsageError: the data is empty, malformed or not finite.
    """
    from deploykit_calibration.observe import run_calibration

    return run_calibration(captured, data, progress=progress, cache_dir=cache_dir, hold_out=True)


def prepare(
    request: Request,
    captured: CapturedModel,
    run: CalibrationRun | CalibrationTable | None = None,
    *,
    target: Target | None = None,
) -> Prepared:
    """Place the target's scheme on a captured model, and run the algorithms that were asked for.

    Args:
        request: what the artifact shall be.
        captured: the captured model of `capture`; the same for every target.
        run: the run of `calibrate`, or a finished table; left aside where neither precision nor algorithms need it.
        target: the plugin; None for the one that the request names.
    Raises:
        CalibrationError: scheme or algorithm need statistics or samples, and there are none, or those of another model.
        MissingDependencyError: what the toolchain exports with is not installed.
        UsageError: a pattern or an algorithm does not exist.
    """
    from deploykit_calibration.observe import CalibrationRun, extended
    from deploykit_calibration.prepare import prepare as place
    from deploykit_calibration.table import CalibrationTable

    target = target or toolchain(request.toolchain)
    target.check_installed(export=True)
    run = CalibrationRun(run) if isinstance(run, CalibrationTable) else run
    if run is not None:
        run.table.check_model(captured.fingerprint)
    adapted = target.adapt(captured, request)
    scheme = target.scheme(request, adapted)
    if run is None or not needs_data(request):
        return place(request, adapted, scheme, reference=captured)
    table = extended(run, adapted) if adapted is not captured else run.table
    return place(request, adapted, scheme, table=table, samples=run.samples, reference=captured)


def lower(prepared: Prepared, folder: Path, *, target: Target | None = None) -> Payload:
    """Write the payload files of a prepared model into an empty folder.

    Args:
        target: the plugin; None for the one that the request names.
    Raises:
        UnsupportedPrecisionError, MissingDependencyError: the toolchain cannot make it, or not here.
        UsageError: the folder holds something.
        ConversionError: the converter refused; the message names op, module path and source line.
    """
    target = target or toolchain(prepared.request.toolchain)
    target.check_precision(prepared.precision, prepared.device)
    target.check_installed(export=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="lower into a folder of its own")
    payload = target.lower(prepared, folder)
    _check_float32(prepared, payload)
    return payload


def _check_float32(prepared: Prepared, payload: Payload) -> None:
    """A layer that a recipe has in float32 is so in the file, or the recipe would say what is not there."""
    for layer in payload.achieved.layers:
        if layer.name in prepared.in_float32 and layer.precision != "float32":
            raise UsageError(
                f"the recipe wants {layer.name} ({layer.op} of {layer.module_path or 'the root module'}) in float32,"
                f" and {prepared.request.toolchain} has it in {layer.precision}",
                hint='write precision = "float" for it, or take another precision or toolchain',
            )


def judge(
    prepared: Prepared,
    payload: Payload,
    folder: Path,
    run: CalibrationRun | None = None,
    *,
    data: Any = None,
    tolerance: Tolerance | None = None,
    target: Target | None = None,
) -> ParityReport:
    """Run a payload beside the float model and the simulated graph, on samples that calibration did not see.

    Args:
        folder: the folder that the payload was written to; golden data and a manifest are written beside it.
        run: the run of `calibrate`; its held-out samples are judged.
        data: samples to judge on where there was no calibration; None for the example inputs.
        tolerance: the gate; None for that of the precision.
        target: the plugin; None for the one that the request names.
    Raises:
        DeviceError, MissingDependencyError: the payload cannot be run here.
    """
    target = target or toolchain(prepared.request.toolchain)
    drafted = draft(target, prepared, payload, folder, calibration=calibration_info(run, prepared))
    samples = choose_samples(prepared, run, data)
    gate = tolerance_of(prepared.precision) if tolerance is None else tolerance
    return prove(target, drafted, prepared, samples, gate, run=run)[1]
