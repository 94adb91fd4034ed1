"""What is exported is what was trained: the same bits on the example inputs, the same nodes under the ranges.

Samples that were kept for a graph of one batch size are cut for that of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import GraphModule

from deploykit.capture import CapturedModel
from deploykit.contract.errors import (
    ConversionError,
)
from deploykit_training.live import LiveGraph, Own

if TYPE_CHECKING:
    from deploykit.plugin.target import Target
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared


def simulation_of(plugin: Target, prepared: Prepared) -> GraphModule:
    """The graph that a target's simulation runs.

    Raises:
        ConversionError: it runs something else than a graph.
    """
    found = getattr(plugin.simulate(prepared), "graph_module", None)
    if not isinstance(found, GraphModule):
        raise ConversionError(
            f"what {plugin.name} simulates is no graph that can be trained", hint="train for another target"
        )
    return found


def check_equal(
    prepared: Prepared,
    simulated: GraphModule,
    graph: LiveGraph,
    own: Own,
    inputs: Sequence[Tensor],
    when: str,
) -> None:
    """Raise unless the live graph gives what the simulated one gives, bit for bit."""
    with torch.no_grad():
        wanted = simulated(*inputs)
        found = graph.run(own, inputs)
    for spec, want, have in zip(prepared.captured.outputs, wanted, found, strict=True):
        if not torch.equal(want, have.cpu()):
            difference = float((want.double() - have.cpu().double()).abs().max())
            raise ConversionError(
                f"output {spec.name!r} of the graph that trains and of the placed one differ by {difference:.3g} {when}"
                " training",
                hint="nothing is exported that was not trained; this is a fault of deploykit: report it with the model",
            )


def check_names(start: Prepared, now: CapturedModel) -> None:
    """Refuse a graph whose nodes have other names than those that ranges are known by."""
    before = {node.name: node.target for node in start.captured.graph_module.graph.nodes if node.op == "call_function"}
    after = {node.name: node.target for node in now.graph_module.graph.nodes if node.op == "call_function"}
    rounded = [name.removesuffix("_q") for name in _names(start) if name.endswith("_q")]
    odd = [name for name in rounded if name in before and before[name] != after.get(name)]
    if odd:
        raise ConversionError(
            f"{odd[0]} of the graph that was trained is not in the graph to export, whose batch is fixed",
            hint="export(dynamic_batch=True), or train with qat(..., dynamic_batch=False)",
        )


def _names(prepared: Prepared) -> list[str]:
    return [node.name for node in prepared.graph_module.graph.nodes]


def fitted(run: CalibrationRun, captured: CapturedModel) -> CalibrationRun:
    """The samples of a calibration, cut to the batch size of another capture of the same model."""
    return replace(run, samples=_cut(run.samples, captured), held_out=_cut(run.held_out, captured))


def _cut(samples: Sequence[Mapping[str, Tensor]], captured: CapturedModel) -> list[dict[str, Tensor]]:
    sizes = {spec.name: spec.shape[0] for spec in captured.inputs if spec.shape and isinstance(spec.shape[0], int)}
    found: list[dict[str, Tensor]] = []
    for feeds in samples:
        whole = dict(feeds)
        for name, size in sizes.items():
            rows = whole[name].shape[0]
            whole[name] = whole[name][: rows // size * size] if rows >= size else _repeated(whole[name], size)
        found += captured.batches(whole)
    return found


def _repeated(rows: Tensor, size: int) -> Tensor:
    """Fewer rows than a batch holds, repeated."""
    return torch.cat([rows] * -(-size // rows.shape[0]))[:size]
