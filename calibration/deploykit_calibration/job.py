"""A conversion job -> its q/dq graph: the step that every toolchain's static int8 begins with.

The method `best` places the graph with several methods, runs each on a few samples of the calibration data beside the
float graph, and keeps the one with the highest SQNR: no single method is best for every network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit.contract.errors import CalibrationError
from deploykit.judge.parity import OutputComparison
from deploykit_calibration.layers import float_layers
from deploykit_calibration.placement import QuantizedGraph, place
from deploykit_calibration.simulate import SimulatedModel

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.contract.scheme import Scheme
    from deploykit.plugin.target import ConversionJob
    from deploykit_calibration.table import CalibrationTable

BEST = "best"
CANDIDATES = ("default", "minmax", "mse", "percentile:99.999", "percentile")
"""What `best` tries; of equals, the first is taken."""
_LEAST_SAMPLES, _MACS = 4, 2e10  # the least that says anything; multiply-accumulates of a second or two


def quantize(job: ConversionJob, scheme: Scheme) -> QuantizedGraph:
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
    wanted = [job.captured.run(feeds) for feeds in samples]
    placed = (_placed(job, scheme, method) for method in CANDIDATES)
    return max(placed, key=lambda quantized: _sqnr(job, quantized, samples, wanted))


def _placed(job: ConversionJob, scheme: Scheme, method: str) -> QuantizedGraph:
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
    samples: Sequence[Mapping[str, Tensor]],
    wanted: Sequence[Mapping[str, Tensor]],
) -> float:
    """SQNR in dB of the worst floating output over all samples."""
    simulated = SimulatedModel(job.captured, quantized)
    names = [spec.name for spec in job.captured.outputs if spec.dtype.startswith("float")]
    comparisons = {name: OutputComparison(name) for name in names}
    for feeds, want in zip(samples, wanted, strict=True):
        got = simulated.run({name: tensor.numpy() for name, tensor in feeds.items()})
        for name, comparison in comparisons.items():
            comparison.add(want[name].numpy(), got[name])
    figures = (comparison.metrics.sqnr_db for comparison in comparisons.values())
    return min((figure for figure in figures if figure is not None), default=SQNR_CAP_DB)
