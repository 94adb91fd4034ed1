"""An operator without kernels of its own as simpler ones: PyTorch's own decomposition, traced for one node."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from deploykit.contract.quiet import quiet
from deploykit_targets.tvm.ops.decomposed import DECOMPOSITIONS

aten = torch.ops.aten
_ALSO = (
    *(aten.native_group_norm.default, aten.native_layer_norm.default, aten._softmax.default, aten.celu.default),
    *(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.selu.default, aten._prelu_kernel.default),
    *(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default),
    *(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default),
    *(aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default),
    *(aten.grid_sampler_2d.default, aten.im2col.default, aten.glu.default, aten.softplus.default),
)


def simpler(node: fx.Node) -> fx.GraphModule | None:
    """A graph that computes the node from its tensor arguments, or None where PyTorch knows none.

    Args:
        node: a captured call with static shapes.
    Returns:
        Placeholders in the order of `node.all_input_nodes`; every call has `meta["val"]`.
    """
    inputs = node.all_input_nodes

    def run(*tensors: torch.Tensor) -> Any:
        known = dict(zip(inputs, tensors, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
        own: Any = node.target
        return DECOMPOSITIONS.get(own, own)(*args, **kwargs)

    examples = [torch.empty(n.meta["val"].shape, dtype=n.meta["val"].dtype) for n in inputs]
    with quiet():
        traced = make_fx(run, decomposition_table=_table(), tracing_mode="fake")(*examples)
    calls = [inner for inner in traced.graph.nodes if inner.op == "call_function"]
    return None if any(inner.target is node.target for inner in calls) else traced


@cache
def _table() -> dict[Any, Any]:
    return {**core_aten_decompositions(), **get_decompositions(_ALSO), **DECOMPOSITIONS}
