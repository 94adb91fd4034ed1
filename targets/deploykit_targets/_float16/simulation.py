"""The simulated reference of a quantised model that computes in float16 beside its integers.

Every value that an operator gives, and every constant that it reads, is rounded to float16 as the file holds it.
What an operator does inside (sums, the steps of a layer norm) is float32 here: compute units differ in it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from deploykit_calibration.products import operator_name
from deploykit_calibration.simulate import SimulatedModel, fake_float8, fake_quantize, round_half

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.placement import QuantizedGraph


_ARITHMETIC = frozenset("add sub rsub mul div".split())
"""Operators with a number in the file, which is float16 there as everything else is."""


def simulated(captured: CapturedModel, quantized: QuantizedGraph, single: Collection[str]) -> SimulatedModel:
    """The q/dq graph in PyTorch with float16 between its integers.

    Args:
        captured: the float model.
        quantized: what `place` made of it.
        single: captured nodes that are computed in float32.
    """
    found = SimulatedModel(captured, quantized)
    _halve(found.graph_module, frozenset(single))
    return found


def _halve(module: GraphModule, single: frozenset[str]) -> None:
    """Let a fused graph round its float values, in place."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            if any(user.name not in single for user in node.users):
                _halve_constant(module, str(node.target))
        elif _is_float(node) and node.name not in single:
            if operator_name(node) in _ARITHMETIC:
                node.args = tuple(float(np.float16(arg)) if isinstance(arg, float) else arg for arg in node.args)
            with module.graph.inserting_after(node):
                half = module.graph.create_node("call_function", round_half, (node,), name=f"{node.name}_half")
            node.replace_all_uses_with(half, delete_user_cb=lambda user, own=half: user is not own)
    module.recompile()


def _halve_constant(module: GraphModule, name: str) -> None:
    value = operator.attrgetter(name)(module)
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        setattr(module, name, round_half(value))


def _is_float(node: Node) -> bool:
    """Whether a node gives one float32 tensor; a fused pair of q and dq does."""
    value = node.meta.get("val")
    computed = isinstance(value, Tensor) and value.dtype == torch.float32
    return node.op != "output" and (computed or node.target in (fake_quantize, fake_float8))
