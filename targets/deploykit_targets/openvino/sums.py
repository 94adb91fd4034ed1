"""Sums that OpenVINO fuses to a convolution, for the simulated reference.

Its plugin of x86 takes a sum and the integers behind it into the kernel of a convolution in front, and then leaves out
the rounding between the two ("drop rounding", in `Convolution::setPostOps`): values are clamped to the range of the
convolution's integers, and rounded only behind the sum. What the file says of it is unchanged.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.fx import GraphModule, Node

from deploykit_calibration.op_kinds import ACTIVATIONS, data_arguments, spec_of
from deploykit_calibration.simulate import fake_quantize


def clamp_before_sums(module: GraphModule) -> None:
    """Rewrite a simulated graph in place: what a fused convolution hands to its sum is clamped and not rounded."""
    for node in list(module.graph.nodes):
        rounded = _fused(node)
        if rounded is not None:
            source, scale, low, high = cast(tuple[Node, float, int, int], rounded.args)
            rounded.target, rounded.args = torch.ops.aten.clamp.default, (source, low * scale, high * scale)
    module.graph.lint()
    module.recompile()


def _fused(node: Node) -> Node | None:
    """The rounded result of the convolution that a sum is fused to: the first term that is one; None where none is."""
    if node.op != "call_function" or _kind(node) != "add" or len(node.args) != 2:
        return None
    terms = [term for term in node.args if isinstance(term, Node) and term.target is fake_quantize]
    if len(terms) != 2 or terms[0] is terms[1] or not _is_rounded(node):
        return None
    first, second = terms
    return first if _is_free(first, second) else second if _is_free(second, first) else None


def _is_free(term: Node, other: Node) -> bool:
    """Whether a term is the result of a convolution that nothing else reads and that does not read the other term."""
    source = term.args[0]
    while isinstance(source, Node) and _kind(source) in ACTIVATIONS and len(source.users) == 1:
        source = source.args[0]
    if not isinstance(source, Node) or _kind(source) != "conv" or len(source.users) != 1 or len(term.users) != 1:
        return False
    return other not in data_arguments(source)


def _is_rounded(node: Node) -> bool:
    """Whether a sum becomes integers, and nothing else reads it; an activation may lie between."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target is fake_quantize:
            return True
        if node.op != "call_function" or _kind(node) not in ACTIVATIONS:
            return False
    return False


def _kind(node: Node) -> str:
    """The kind of a node of a simulated graph, some of whose values are not known."""
    return spec_of(node).kind
