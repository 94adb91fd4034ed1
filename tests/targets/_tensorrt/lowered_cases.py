"""Operator cases written as ONNX for TensorRT, in each precision that places anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from op_cases import CASES, Apply

from deploykit.capture import capture
from deploykit.contract.errors import ConversionError
from deploykit.pipeline.plan import make_request
from deploykit_calibration.observe import CalibrationRun, calibrate
from deploykit_calibration.prepare import prepare
from deploykit_targets._onnx.explicit import lower_explicit
from deploykit_targets._onnx.lint import load_rules
from deploykit_targets.tensorrt.scheme import opset_of, scheme_of

Placed = list[tuple[str, str]]


def lowered_cases(
    folder: Path, cases: Mapping[str, Any] = CASES, precisions: Sequence[str] = ("fp32", "fp16", "int8")
) -> Iterator[tuple[str, Placed | ConversionError]]:
    """(file name, kind and name of every layer in int8) of each case; an int8 case that places nothing is left out."""
    for name, (function, inputs) in cases.items():
        captured = capture(Apply(function), example_inputs=inputs)
        feeds = dict(zip((spec.name for spec in captured.inputs), captured.example_inputs, strict=True))
        for precision in precisions:
            request = make_request("jetson-orin", precision)
            run = CalibrationRun(calibrate(captured, [feeds], progress=False)) if precision == "int8" else None
            table = {} if run is None else {"table": run.table}
            prepared = prepare(request, captured, scheme_of(request, captured), **table)
            placed = [(layer.kind, layer.name) for layer in prepared.layers if layer.precision == "int8"]
            if precision == "int8" and not placed:
                continue
            file = f"{name}.{precision}.onnx"
            try:
                made = lower_explicit(prepared, load_rules("tensorrt"), opset=opset_of(request.device))
            except ConversionError as error:
                yield file, error
                continue
            onnx.save(made.model, folder / file)
            yield file, placed
