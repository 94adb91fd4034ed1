"""A conversion job -> its q/dq graph: the step that every toolchain's static int8 begins with.

The method `best` places the graph with several methods, runs each on a few samples of the calibration data beside the
float graph, and keeps the one with the highest SQNR: no single method is best for every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from deploykit.errors import CalibrationError
from deploykit.parity import sqnr_db
from deploykit_calibration.layers import float_layers
from deploykit_calibration.placement import QuantizedGraph, place
from deploykit_calibration.simulate import SimulatedModel

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

    from deploykit.target import ConversionJob
    from deploykit_calibration.scheme import QuantScheme
    from deploykit_calibration.table import CalibrationTable

BEST = "best"
CANDIDATES = ("default", "minmax", "mse", "percentile:99.999", "percentile")
"""What `best` tries; of equals, the first is taken."""
_LEAST_SAMPLES, _MACS = 4, 2e10  # the least that says anything; multiply-accumulates of a second or two


def quantize(job: ConversionJob, scheme: QuantScheme) -> QuantizedGraph:
    """Place the q/dq nodes of `scheme` as the job asks: its table, method and patterns.

    Raises:
        CalibrationError: the job has no table.
        UsageError: a pattern matches nothing.
    """
    if job.table is None:
        raise CalibrationError("a static int8 conversion needs a calibration table", hint="pass calibration=")
    if job.method != BEST:
        return _placed(job, scheme, job.method)
    samples = list(job.samples[: _affordable(job)]) or [_example(job)]
    names = [spec.name for spec in job.captured.inputs]  # a placeholder may be called otherwise
    inputs = [[feeds[name] for name in names] for feeds in samples]
    wanted = [_run(job.captured.graph_module, tensors) for tensors in inputs]
    placed = (_placed(job, scheme, method) for method in CANDIDATES)
    return max(placed, key=lambda quantized: _sqnr(job, quantized, inputs, wanted))


def _placed(job: ConversionJob, scheme: QuantScheme, method: str) -> QuantizedGraph:
    table = cast("CalibrationTable", job.table)
    return place(job.captured, table, scheme, method=method, include=job.include, exclude=job.exclude)


def _affordable(job: ConversionJob) -> int:
    """How many samples each candidate is judged on: all that were kept of a small network, few of a large one."""
    macs = sum(layer.macs for layer in float_layers(job.captured))
    return max(_LEAST_SAMPLES, int(_MACS // max(macs, 1)))


def _example(job: ConversionJob) -> dict[str, Tensor]:
    specs = zip(job.captured.inputs, job.captured.example_inputs, strict=True)
    return {spec.name: tensor for spec, tensor in specs}


def _sqnr(
    job: ConversionJob,
    quantized: QuantizedGraph,
    inputs: Sequence[Sequence[Tensor]],
    wanted: Sequence[tuple[Tensor, ...]],
) -> float:
    """SQNR in dB of the worst floating output over all samples."""
    simulated = SimulatedModel(job.captured, quantized).graph_module
    powers = np.zeros((2, len(job.captured.outputs)))
    for tensors, want in zip(inputs, wanted, strict=True):
        for index, (float_output, int8_output) in enumerate(zip(want, _run(simulated, tensors), strict=True)):
            if float_output.is_floating_point():
                powers[0, index] += float(float_output.double().square().sum())
                powers[1, index] += float((float_output - int8_output).double().square().sum())
    return min((sqnr_db(*power) for power in powers.T if power[0] > 0.0), default=torch.inf)


def _run(graph_module: GraphModule, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        return tuple(graph_module(*tensors))
