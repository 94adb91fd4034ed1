"""The type of what stays float beside integers, where the target's file says types and the scheme leaves it open.

By the listings of NVIDIA's compiler (TensorRT for RTX 1.7; benchmarks/tensorrt_compiled.py) an int8 convolution hands
its sums to the chain behind it in float32 whatever the file says. What the file's type makes smaller are results of
int8 products of matrices, of float layers, and of what computes in float between integers: gates, norms, softmax.
Where nearly nothing of that is there, as in ResNet, float16 moves no fewer bytes, and float32 is exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared

_MATRICES = ("linear", "matmul")
# Steps of the chain behind a convolution: what they read is no tensor of the file's type.
_POOLS = frozenset({"max_pool", "avg_pool", "mean"})
_LEAST_SHARE = 0.01


def float_between(prepared: Prepared) -> Literal["float32", "float16"]:
    """What `Scheme.between` comes to for a prepared model."""
    between = prepared.scheme.between
    if between != "by traffic":
        return between
    return "float16" if _narrowed_share(prepared) >= _LEAST_SHARE else "float32"


def _narrowed_share(prepared: Prepared) -> float:
    """The share of all elements that operators write that has the file's type and is not returned."""
    nodes = [node for node in prepared.captured.graph_module.graph.nodes if node.op == "call_function"]
    written = {node.name: _elements(node.meta.get("val")) for node in nodes}
    returned = {node.name for node in nodes if any(user.op == "output" for user in node.users)}
    own = {activation.name for activation in prepared.float_activations if activation.op not in _POOLS}
    for layer in prepared.layers:
        if layer.macs and (layer.kind in _MATRICES or layer.precision == "float"):
            own.add(layer.name)
    return sum(written.get(name, 0) for name in own - returned) / max(1, sum(written.values()))


def _elements(value: object) -> int:
    return math.prod(int(size) for size in value.shape) if isinstance(value, Tensor) else 0
