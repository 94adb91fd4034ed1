"""What the compiler made of an int8 graph, read from the code it generated.

oneDNN's integer kernels are called by name, with the constant that holds the scales of the layer's weight. The compiler
writes constants of a few elements in place, without a name: such calls count where there are exactly as many as layers
left that could have made them.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch.fx import Graph, Node

if TYPE_CHECKING:
    from deploykit_calibration.placement import LayerPlacement

_CALL = re.compile(r"aoti_torch_cpu__q(?P<kind>conv|linear)_pointwise\w*\((?P<arguments>.*)")
_SCALES = re.compile(r"\b(?P<layer>\w+)_weight_scale(?:_\d+)?\b")


def integer_layers(
    path: Path, layers: Iterable[LayerPlacement], owners: Mapping[str, str] | None = None
) -> frozenset[str]:
    """Names of the layers that a package computes with integer kernels.

    Args:
        path: `.pt2` package with its generated sources.
        layers: as they were placed.
        owners: `weight_owners`, where layers may share weights: they count where there are as many calls as layers.
    """
    calls = list(_calls(path))
    placed = {layer.name: layer.kind for layer in layers if layer.precision == "int8"}
    owner = {name: (owners or {}).get(name, name) for name in placed}
    sharing, called_by = Counter(owner.values()), Counter(name for _, name in calls)
    found = {name for name in placed if called_by[owner[name]] >= sharing[owner[name]]}
    for kind in ("conv", "linear"):
        nameless = sum(called == kind and name not in placed for called, name in calls)
        left = {name for name, of in placed.items() if of == kind} - found
        found |= left if nameless == len(left) else set()
    return frozenset(found)


def weight_owners(graph: Graph) -> dict[str, str]:
    """Layer -> the layer whose name the scales of its weight have: steps of a recurrent layer share one weight."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
        if isinstance(weight, Node) and "dequantize_per_channel" in str(weight.target):
            scales = _SCALES.search(str(weight.args[1]))
            if scales:
                found[node.name] = scales["layer"]
    return found


def _calls(path: Path) -> Iterator[tuple[str, str]]:
    """(kind, layer or "") of every call of an integer kernel."""
    with zipfile.ZipFile(path) as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".cpp")]
    for call in _CALL.finditer("\n".join(sources)):
        scales = _SCALES.search(call["arguments"])
        yield call["kind"], scales["layer"] if scales else ""
