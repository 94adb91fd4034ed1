"""Recurrent layers as the products of their steps, which compilers for GPUs multiply in int8.

To NVIDIA's a recurrent operator is a loop, whose body multiplies in float and is not fused with what surrounds it;
MIGraphX writes it out itself, behind where operands are quantized. Written out here, two LSTM layers of 24 steps are
48 int8 products and 49 chains of NVIDIA's in place of 117 engine layers without an integer
(benchmarks/tensorrt_compiled.py). Longer ones stay loops: an engine with two layers for every step is slow to build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.capture.editor import is_static, shape_of
from deploykit.capture.recurrent import unroll_recurrent
from deploykit.capture.recurrent_cells import RECURRENT
from deploykit.contract.precision import Precision

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

MOST_STEPS = 256
"""Steps of all recurrent layers of a model, in both directions, up to which they are written out."""
_QUANTIZED = (Precision.INT8, Precision.MIXED, Precision.FP8)


def written_out(captured: CapturedModel, request: Request) -> CapturedModel:
    """The model with its recurrent layers written out where products are quantized; else as it was captured."""
    if request.precision not in _QUANTIZED:
        return captured
    layers = [node for node in captured.graph_module.graph.nodes if node.target in RECURRENT]
    if not all(is_static(shape_of(source)) for node in layers for source in node.all_input_nodes):
        return captured
    return unroll_recurrent(captured) if sum(map(_steps, layers)) <= MOST_STEPS else captured


def _steps(node: Node) -> int:
    """How many products of a state a recurrent operator stands for."""
    arguments: tuple[Any, ...] = node.args
    source, _, _, _, layers, _, _, bidirectional, batch_first = arguments
    length: int = shape_of(source)[1 if batch_first else 0]
    steps: int = length * layers * (2 if bidirectional else 1)
    return steps
