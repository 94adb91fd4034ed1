"""Run a float graph and the same graph with other weights in step, over all samples, choosing the weights on the way.

Each layer is shown what it reads in both graphs before it runs; weights that are put in place then are what the second
graph computes with from there on. One run of each graph in all, and the values of all samples that are still needed in
memory: `affordable` says how many samples that is good for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from deploykit.capture.calls import stored
from deploykit_calibration.graph_view import read_last
from deploykit_calibration.op_kinds import shape_of
from deploykit_calibration.products import mac_count

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

    Feeds = Sequence[Mapping[str, Tensor]]
    Values = Sequence[Any]
    Choose = Callable[[Values, Values], None]

_MACS = 1e11
_LEAST_SAMPLES = 8
_LIVE_BYTES = 2 << 30


def affordable(captured: CapturedModel, samples: Feeds) -> Feeds:
    """The first samples: as many as cost seconds and fit into memory, and a few of the largest networks.

    Args:
        samples: feeds by input name, each of the size that the graph was captured with.
    """
    ops = [node for node in captured.graph_module.graph.nodes if node.op == "call_function"]
    macs = sum(mac_count(op) or 0 for op in ops)
    largest = max(
        (4 * torch.Size(shape_of(op)).numel() for op in ops if isinstance(op.meta.get("val"), Tensor)), default=1
    )
    count = max(_LEAST_SAMPLES, int(_MACS // max(macs, 1)))
    return samples[: max(1, min(count, _LIVE_BYTES // (4 * largest)))]


def run_in_step(
    captured: CapturedModel,
    samples: Feeds,
    replaced: MutableMapping[str, Tensor],
    before: Mapping[Node, tuple[Node, Choose]],
) -> None:
    """Run both graphs.

    Args:
        replaced: stored tensors of the second graph by name; read whenever an op runs.
        before: op -> (what it reads, called with that of every sample, in the float graph and in the second one).
    """
    module = captured.graph_module
    dying = read_last(module.graph)
    values: dict[Node, tuple[Values, Values]] = {}
    names = iter(captured.inputs)
    with torch.inference_mode():
        for node in module.graph.nodes:
            if node.op == "placeholder":
                name = next(names).name
                fed = [feeds[name] for feeds in samples]
                values[node] = fed, fed
            elif node.op == "call_function":
                if node in before:
                    source, choose = before[node]
                    choose(*values[source])
                values[node] = _both(module, node, values, replaced, len(samples))
            for dead in dying.get(node, ()):
                values.pop(dead, None)


def _both(
    module: Any, node: Node, values: Mapping[Node, tuple[Values, Values]], replaced: Mapping[str, Tensor], count: int
) -> tuple[Values, Values]:
    reads = node.all_input_nodes
    same = all(
        values[read][0] is values[read][1] if read in values else str(read.target) not in replaced for read in reads
    )
    plain = [_evaluated(module, node, values, {}, 0, index) for index in range(count)]
    return plain, plain if same else [_evaluated(module, node, values, replaced, 1, index) for index in range(count)]


def _evaluated(
    module: Any,
    node: Node,
    values: Mapping[Node, tuple[Values, Values]],
    replaced: Mapping[str, Tensor],
    graph: int,
    index: int,
) -> Any:
    def value(read: Node) -> Any:
        if read.op != "get_attr":
            return values[read][graph][index]
        name = str(read.target)
        return replaced[name] if name in replaced else stored(module, name)

    args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
    return node.target(*args, **kwargs)  # type: ignore[operator]
