"""Whether the runtime takes a file that the converter wrote; where it does not, the layer that it does not take.

The converter writes operators that the runtime has no kernel for (a sort, a scatter with a sum), without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.contract.errors import ArtifactError
from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.failures import not_taken
from deploykit_targets.litert.session import open_interpreter

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.capture.origins import Origin


def check_opens(path: Path, captured: CapturedModel, kernels: str) -> None:
    """Open a file once.

    Args:
        path: the path of the file.
        captured: the model that it was made of.
        kernels: as in `LiteRTOptions`.
    Raises:
        ConversionError: the runtime refuses it; names operator, module and source line.
    """
    try:
        open_interpreter(str(path), 1, kernels)
    except ArtifactError as error:
        raise not_taken(error.message, flatbuffer.read(path), _origins(captured)) from error


def _origins(captured: CapturedModel) -> dict[str, Origin]:
    """Where the tensors of a file come from, by the names of the graph's nodes and by those of its outputs."""
    (end,) = captured.graph_module.graph.find_nodes(op="output")
    nodes = zip(captured.outputs, end.args[0], strict=True)
    returned = {spec.name: getattr(node, "name", "") for spec, node in nodes}
    ends = {name: captured.origins[node] for name, node in returned.items() if node in captured.origins}
    return {**ends, **captured.origins}
