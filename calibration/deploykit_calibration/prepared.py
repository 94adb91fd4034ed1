"""`Prepared`: a captured model on its way to a target, in any precision: what every lowering starts from.

The float model, the scheme of the target and the statistics are its values; the graph with its q/dq nodes, the report
of every layer and the simulated reference follow from them, once, when they are first asked for. Algorithms change the
values (another method, corrected biases, other weights) and leave what follows to follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from deploykit.contract.achieved import FloatActivation
from deploykit.contract.devices import Device
from deploykit.contract.errors import CalibrationError, UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.request import Request
from deploykit.contract.scheme import Scheme
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.placement import LayerPlacement, QuantizedGraph, float_graph, place
from deploykit_calibration.simulate import SimulatedModel, free

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.fx import GraphModule

    from deploykit.capture import CapturedModel
    from deploykit_calibration.table import CalibrationTable


class Runnable(Protocol):
    """A graph that gives named arrays for named arrays."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one sample."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a target lowers.

    Attributes:
        request: what the artifact shall be.
        captured: the normalised float graph; algorithms may have replaced its weights.
        scheme: how the target wants it quantised; one that quantises nothing for float precisions.
        reference: the model as it was captured, whatever target or algorithms made of it since: parity is against it.
        table: activation statistics; None where the precision needs none.
        samples: a few of the calibration data, feeds by input name; empty where there is only a finished table.
        method: how ranges are chosen from the statistics.
        corrects_bias: the shift of a layer's mean that rounding its weight causes is taken out of its bias.
        applied: names of the algorithms that were run.
        decided: while an algorithm runs, what it is to take as found; it puts there what it finds from the data.
        decisions: what each of `applied` found.
        kept: layers that stay in float beside those that the scheme and the patterns keep, by node name, and why.
        in_float32: float layers that compute in float32 where the file has float16 beside them, by node name, and why.
        wider: layers whose weight is held in 8 bits where the scheme has fewer, by node name, and why.
        methods: how the ranges of single tensors are chosen, by node name, where that is not `method`.
        unrounded: the float graph before an algorithm rounded its weights, which `captured` has on the target's grid.
        trained: the graph that was trained, where one was: parity is against it in place of `reference`.
        is_baseline: made to be compared with and not kept, so that nothing need be proved of it.
    """

    request: Request
    captured: CapturedModel
    scheme: Scheme
    reference: CapturedModel
    table: CalibrationTable | None = None
    samples: Sequence[Mapping[str, Tensor]] = ()
    method: str = "default"
    corrects_bias: bool = False
    applied: tuple[str, ...] = ()
    decided: Mapping[str, Any] = field(default_factory=dict)
    decisions: tuple[Mapping[str, Any], ...] = ()
    is_baseline: bool = False
    trained: Runnable | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    in_float32: Mapping[str, str] = field(default_factory=dict)
    wider: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    unrounded: CapturedModel | None = None

    @property
    def exact(self) -> CapturedModel:
        """What errors are seen from: the float graph with weights that nothing rounded."""
        return self.captured if self.unrounded is None else self.unrounded

    @property
    def precision(self) -> Precision:
        """The requested precision."""
        return self.request.precision

    @property
    def device(self) -> Device:
        """The device that the artifact is for."""
        return self.request.device

    @property
    def options(self) -> Any:
        """The toolchain's own options dataclass."""
        return self.request.options

    @property
    def include(self) -> tuple[str, ...]:
        """Patterns of the layers to quantise; empty is all."""
        return self.request.include

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of the layers that stay float."""
        return self.request.exclude

    @property
    def statistics(self) -> CalibrationTable:
        """The table.

        Raises:
            CalibrationError: there is none.
        """
        if self.table is None:
            raise CalibrationError(f"{self.precision} needs a calibration table", hint="pass calibration=")
        return self.table

    @property
    def extremes(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest finite value that calibration saw of each tensor, by node name; empty without one."""
        statistics = self.table.statistics if self.table is not None else {}
        return {name: (seen.minimum, seen.maximum) for name, seen in statistics.items() if seen.count}

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The range of each observed tensor for the scheme's activations, by node name, as the method chooses it.

        Raises:
            CalibrationError: there are no statistics.
        """
        table, form = self.statistics, self.scheme.activation
        of = GraphView.of(self.captured).degrees
        chosen = {name: self.methods.get(name, self.method) for name in table.statistics}
        return {
            name: table.range(name, method=method, symmetric=form.symmetric, bits=form.bits, degree=of[name])
            for name, method in chosen.items()
        }

    @cached_property
    def placed(self) -> QuantizedGraph:
        """The graph with the q/dq nodes of the scheme, and the report of every layer.

        Raises:
            CalibrationError: the scheme needs statistics, and there are none.
            UsageError: a pattern matches nothing, or a weight cannot be wider than others.
        """
        if not self.scheme.quantizes and self.wider:
            raise UsageError(
                f"{self.precision} of {self.request.toolchain} is not placed: the weights of {', '.join(self.wider)}"
                " cannot be wider than others",
                hint="take onnxruntime, whose matrix products may differ in width",
            )
        if not self.scheme.quantizes:
            return float_graph(self.captured, self.scheme, include=self.include, exclude=self.exclude)
        return place(
            self.captured,
            self.statistics if self.scheme.is_static else self.table,
            replace(self.scheme, bias_correction=self.corrects_bias),
            method=self.method,
            include=self.include,
            exclude=self.exclude,
            kept=self.kept,
            wider=self.wider,
            methods=self.methods,
        )

    @property
    def is_placed(self) -> bool:
        """Whether the graph with q/dq nodes was asked for, and is held."""
        return "placed" in self.__dict__

    def release(self) -> None:
        """Free the tensors of what was placed and simulated of this, which a search has no more use for.

        Graphs refer to their modules in circles, so that nothing is freed before a full collection, which tensors do
        not hasten: five candidates of a ViT-B held 4 GB. What is asked for again is made again.
        """
        made = [self.__dict__.pop(name, None) for name in ("placed", "simulation")]
        for module in (each.graph_module for each in made if each is not None):
            if module is not self.captured.graph_module:
                free(module)

    def discard(self, simulation: object) -> None:
        """Free a simulation that a target made of this for one use, as one that rounds otherwise does."""
        if isinstance(simulation, SimulatedModel) and simulation is not self.__dict__.get("simulation"):
            free(simulation.graph_module)

    @property
    def graph_module(self) -> GraphModule:
        """What is lowered: the graph with q/dq nodes, or the float graph itself."""
        return self.captured.graph_module if self.scheme.by_vendor else self.placed.graph_module

    @cached_property
    def in_float(self) -> frozenset[str]:
        """Layers that are placed as float: what a vendor's own quantizer has to leave."""
        return frozenset(layer.name for layer in self.layers if layer.precision == "float")

    @cached_property
    def excluded(self) -> dict[str, str]:
        """Layers that stay float by pattern or recipe, and Fourier transforms, with the reason."""
        floats = (layer for layer in self.layers if layer.by_request or layer.name in self.kept)
        return {layer.name: layer.reason for layer in floats if layer.reason}

    @property
    def layers(self) -> tuple[LayerPlacement, ...]:
        """Every layer in execution order, and what it was placed as."""
        return self.placed.layers

    @property
    def float_activations(self) -> tuple[FloatActivation, ...]:
        """What computes in float beside the integer layers, largest first."""
        return self.placed.float_activations

    @property
    def rounds(self) -> bool:
        """Whether some layer is placed in integers, so that there is something to simulate; nothing is simulated."""
        return self.scheme.quantizes and any(layer.precision != "float" for layer in self.layers)

    @cached_property
    def simulation(self) -> SimulatedModel | None:
        """The quantised graph in PyTorch, the reference of the parity chain; None where nothing is quantised."""
        return SimulatedModel(self.captured, self.placed) if self.scheme.quantizes else None
