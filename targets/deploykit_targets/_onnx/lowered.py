"""A conversion job -> ONNX, for all targets that take ONNX: float as captured, or quantized by a scheme."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.contract.errors import UsageError
from deploykit.contract.scheme import Scheme
from deploykit_calibration.job import quantize
from deploykit_calibration.layers import float_layers
from deploykit_calibration.placement import LayerPlacement
from deploykit_calibration.simulate import SimulatedModel
from deploykit_targets._onnx.lower import to_onnx

if TYPE_CHECKING:
    import onnx

    from deploykit.capture import CapturedModel
    from deploykit.plugin.target import ConversionJob
    from deploykit_calibration.placement import QuantizedGraph


@dataclass(frozen=True, eq=False)
class Lowered:
    """A job as ONNX.

    Attributes:
        model: with node names of the captured graph.
        layers: every layer and what it was placed as.
        simulation: the q/dq graph in PyTorch; None for float.
        log: what exporters printed.
    """

    model: onnx.ModelProto
    layers: tuple[LayerPlacement, ...]
    simulation: SimulatedModel | None
    log: str


def lower_float(job: ConversionJob, *, opset: int = 20) -> Lowered:
    """The float graph as ONNX."""
    log: list[str] = []
    model = to_onnx(job.captured, opset=opset, log=log)
    return Lowered(model, float_layers(job.captured), None, "\n".join(log))


def lower_quantized(
    job: ConversionJob,
    scheme: Scheme,
    *,
    opset: int = 20,
    simulate: Callable[[CapturedModel, QuantizedGraph], SimulatedModel] = SimulatedModel,
) -> Lowered:
    """The graph with the q/dq nodes of `scheme` as ONNX.

    Args:
        simulate: makes the reference of the parity chain; another one where the file is not left in int8.

    Raises:
        CalibrationError: the job has no table.
    """
    quantized = quantize(job, scheme)
    log: list[str] = []
    model = to_onnx(job.captured, quantized.graph_module, opset=opset, log=log)
    return Lowered(model, quantized.layers, simulate(job.captured, quantized), "\n".join(log))


def refuse_patterns(job: ConversionJob) -> None:
    """For precisions that a whole model is in: a pattern would be without effect.

    Raises:
        UsageError: the job has patterns.
    """
    if job.include or job.exclude:
        raise UsageError(f"{job.precision} is of the whole model: include and exclude have no effect", hint="omit them")
