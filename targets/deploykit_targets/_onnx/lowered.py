"""A prepared model -> ONNX, for all targets that take ONNX: float as captured, or with the q/dq nodes of a scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.contract.errors import UsageError
from deploykit.contract.precision import Precision
from deploykit_targets._onnx.lower import to_onnx

if TYPE_CHECKING:
    import onnx

    from deploykit_calibration.prepared import Prepared


@dataclass(frozen=True, eq=False)
class Lowered:
    """A prepared model as ONNX.

    Attributes:
        model: the model, with node names of the captured graph.
        log: what exporters printed.
    """

    model: onnx.ModelProto
    log: str


def lowered(prepared: Prepared, *, opset: int = 20) -> Lowered:
    """The graph of a prepared model as ONNX.

    Raises:
        UsageError: patterns in a precision that a whole model is in, where they would be without effect.
    """
    whole = prepared.precision.row.is_whole and prepared.precision is not Precision.FP32
    if whole and (prepared.include or prepared.exclude):
        raise UsageError(
            f"{prepared.precision} is of the whole model: include and exclude have no effect", hint="omit them"
        )
    log: list[str] = []
    model = to_onnx(prepared.captured, prepared.graph_module, opset=opset, log=log)
    return Lowered(model, "\n".join(log))
