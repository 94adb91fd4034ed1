"""What capture hands to everything else: `CapturedModel`, one flat graph and all that is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deploykit.capture.derivation import Derivation
from deploykit.capture.dynamic import reexport
from deploykit.capture.inputs import InputTree, split_feeds
from deploykit.capture.origins import Origin
from deploykit.contract.tensors import TensorSpec


@dataclass(frozen=True, eq=False)
class CapturedModel:
    """A model as one flat, normalised graph: eval mode, CPU, float32, no gradients.

    Attributes:
        graph_module: placeholders in the order of `inputs`, get_attr constants, aten calls, one output node that
            returns a tuple in the order of `outputs`; callable with flat tensors. A placeholder's target is the
            name of its input; its node name is the same, save where that is a Python builtin (`input` becomes the
            node `input_1`). Every call_function node has `meta["val"]` (a fake tensor: shape and dtype).
        inputs: name, shape and dtype of every tensor input; a str in a shape is a dynamic axis.
        outputs: name, shape and dtype of every output.
        example_inputs: flat, detached CPU copies of the example inputs, in the order of `inputs`.
        dynamic_axes: input name -> {axis: symbol}; empty when the shapes are static.
        origins: provenance of every call_function node, by node name.
        fingerprint: sha256 hex of structure, weights and specs; equal in every process.
        input_tree: how the user's arguments map to the flat names.
        symbol_ranges: dynamic symbol -> (smallest, largest or None) size it may take.
        model_name: class of the model, for folders that nobody named.
        derivations: how each stored tensor follows from the model's own, by the target of its `get_attr` node; one that
            is not here is a literal.
        trainable: parameters will change: no constant was left out for the value that it has now.
        remarks: what must be said of the inputs that were taken.
        derived: what others work out from the graph once, by who they are; a replaced graph begins with nothing.
    """

    graph_module: torch.fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example_inputs: tuple[Tensor, ...]
    dynamic_axes: Mapping[str, Mapping[int, str]]
    origins: Mapping[str, Origin]
    fingerprint: str
    input_tree: InputTree
    symbol_ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    model_name: str = "model"
    derivations: Mapping[str, Derivation] = field(default_factory=dict)
    trainable: bool = False
    remarks: tuple[str, ...] = ()
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def feeds(self, batch: Any) -> dict[str, Tensor]:
        """Map one batch of the user's data to named flat tensors (CPU, detached).

        Args:
            batch: a tensor, a tuple such as `(inputs, labels)` or one item per input, or a dict by name; further
                items and keys (labels) are ignored.

        Raises:
            CalibrationError: an input is missing, or has the wrong rank, size or dtype; the message names it.
        """
        return self.input_tree.feeds(batch, self.inputs)

    def batches(self, batch: Any) -> Iterator[dict[str, Tensor]]:
        """`feeds` for a batch of any size: split along axis 0 into pieces that the static graph takes.

        Yields:
            feeds of the captured batch size (any size where axis 0 is dynamic).

        Raises:
            CalibrationError: as `feeds`, or the batch is no multiple of the captured batch size.
        """
        return split_feeds(self.input_tree.feeds(batch, self.inputs, any_batch=True), self.inputs)

    def example_feeds(self) -> dict[str, Tensor]:
        """The example inputs by name."""
        return {spec.name: x for spec, x in zip(self.inputs, self.example_inputs, strict=True)}

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the float graph; feeds and result by name.

        Raises:
            CalibrationError: a feed is missing or does not fit its input.
        """
        flat = self.input_tree.feeds(feeds, self.inputs)
        with torch.no_grad():
            results = self.graph_module(*(flat[spec.name] for spec in self.inputs))
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def export_program(self, graph_module: torch.fx.GraphModule | None = None) -> torch.export.ExportedProgram:
        """Export the flat graph again, with its dynamic axes and input names.

        Args:
            graph_module: a rewritten copy (with q/dq nodes, say) of `self.graph_module`; None takes that itself.

        Raises:
            CaptureError: PyTorch refuses the rewritten graph.
        """
        return reexport(graph_module or self.graph_module, self)
