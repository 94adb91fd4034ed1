"""A prepared model -> ONNX, for all targets that take ONNX: float as captured, or with the q/dq nodes of a scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """The graph of a prepared model as ONNX."""
    log: list[str] = []
    model = to_onnx(prepared.captured, prepared.graph_module, opset=opset, log=log)
    return Lowered(model, "\n".join(log))
