"""`Trained`: a model while and after it trains for a target, with the metric that guards it, and its export."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit.capture.derivation import own_names
from deploykit.contract.errors import UsageError
from deploykit.contract.request import Request
from deploykit.contract.session import FunctionSession, Session
from deploykit.judge.parity import Tolerance
from deploykit.pipeline.evidence import Task
from deploykit.pipeline.plan import Goals, make_plan
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.publishing import published
from deploykit.pipeline.reference import reference_session
from deploykit_training.forward import Interface, LiveForward, hold_masks, plain, restore, swap
from deploykit_training.live import LiveGraph, own_of
from deploykit_training.same_graph import check_equal, check_names, fitted, simulation_of

if TYPE_CHECKING:
    from deploykit.plugin.artifact import Artifact
    from deploykit.plugin.target import Target
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared


class TrainingWarning(UserWarning):
    """Something that a training for a target does otherwise than its user may expect."""


@dataclass(frozen=True)
class Start:
    """What training for a target begins with.

    Attributes:
        module: the user's.
        example_inputs: as the user gave them, or the model has them.
        request: what the artifact shall be.
        run: ranges, and samples that were held back.
        prepared: the scheme of the target on the untrained model.
        task: the user's metric, or None.
        live_steps: first steps in which batch norms use the statistics of the batch.
        plugin: the plugin whose scheme is trained.
    """

    module: nn.Module
    example_inputs: Any
    request: Request
    run: CalibrationRun
    prepared: Prepared
    task: Task | None
    live_steps: int
    plugin: Target


class Trained:
    """A model that is trained for a target; as a context manager it swaps the model's forward for the block.

    Attributes:
        model: the user's own module.
        graph: the placed graph as a function of the module's parameters.
        notes: what was found: parameters that are not reached, a training that was not needed, or that was undone.
        metrics: the metrics of the user's `evaluate`: `float`, `start` (the quantised model before training) and
            `trained`.
    """

    def __init__(self, start: Start, graph: LiveGraph, interface: Interface) -> None:
        self._start, self.graph, self._interface = start, graph, interface
        self.model = start.module
        self.notes: list[str] = []
        self.metrics: dict[str, float] = {}
        self._forward: LiveForward | None = None
        self._before: Any = None
        self._saved: dict[str, Tensor] = {}
        self._note_unreached()

    # The block.

    def __enter__(self) -> Trained:
        self.attach()
        try:
            self.measure_start()
        except BaseException:
            self.detach()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            self.detach()

    def attach(self, kind: type[LiveForward] = LiveForward) -> LiveForward:
        """Let the model's forward run the live graph, until `detach`; `kind` may take more than was captured."""
        self._forward = kind(self.model, self.graph, self._interface)
        self._forward.live_steps = self._start.live_steps
        self._before = swap(self.model, self._forward)
        return self._forward

    def detach(self) -> None:
        """Give the model its own forward back; its parameters stay as they are."""
        if self._forward is not None:
            restore(self.model, self._before)
            self._forward = None

    def session(self) -> Session:
        """The quantised graph with the parameters of the moment, as a session (of the simulation, in PyTorch)."""
        captured = self._start.prepared.reference
        return FunctionSession(self.run, captured.inputs, captured.outputs, threads=torch.get_num_threads())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one set of named arrays through the graph with the parameters of the moment."""
        hold_masks(self.model)
        return self.graph.arrays(own_of(self.model), feeds)

    @property
    def is_attached(self) -> bool:
        """Whether the model's forward runs the live graph now."""
        return self._forward is not None

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """Flat names of the model's inputs, as `run` takes them."""
        return tuple(spec.name for spec in self._start.prepared.reference.inputs)

    @property
    def calls(self) -> int:
        """How often the model's forward ran since it was attached."""
        return 0 if self._forward is None else self._forward.calls

    @property
    def scales(self) -> list[nn.Parameter]:
        """Parameters of the scales of activations (logarithms of factors, shape ()); none where they are fixed.

        They are in no `state_dict`, and are no parameters of the model: your optimizer gets them beside those.

        Raises:
            UsageError: several processes train, between which nobody would keep them equal.
        """
        if self.graph.scales is None:
            return []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise UsageError(
                "scales are learned by one process: DistributedDataParallel does not know of them",
                hint="the callbacks for Lightning and Hugging Face train them over processes; or train on one device",
            )
        return self.graph.scales.parameters

    # The metric: no worse than the start.

    def measure_start(self) -> None:
        """Where there is a metric: measure it before the first step, and note where no training is needed."""
        task = self._start.task
        if task is None:
            return
        self.metrics["float"] = task.measure(reference_session(self._start.prepared.reference)).value
        self.metrics["start"] = task.measure(self.session()).value
        self._saved = {name: value.detach().clone() for name, value in self._state().items()}
        lost = self.metrics["float"] - self.metrics["start"]
        if lost <= task.max_drop:
            self._note(
                f"the quantised model loses {max(0.0, lost):.4g} of the metric without training, and {task.max_drop:g}"
                " may be lost: export it as it is; training may lower it"
            )

    def settle(self) -> None:
        """Where there is a metric: measure it, and go back to the parameters of the start if training lowered it."""
        task = self._start.task
        if task is None or "start" not in self.metrics:
            return
        self.metrics["trained"] = task.measure(self.session()).value
        if self.metrics["trained"] < self.metrics["start"]:
            with torch.no_grad():
                for name, value in self._state().items():
                    value.copy_(self._saved[name])
            self._note(
                f"training lowered the metric from {self.metrics['start']:.4g} to {self.metrics['trained']:.4g}: the"
                " model has the parameters of the start again; try a lower learning rate or more steps"
            )

    def _state(self) -> dict[str, Tensor]:
        """All that training changes, by name."""
        scales = self.graph.scales.parameters if self.graph.scales is not None else []
        own = {f"scale {at}": parameter for at, parameter in enumerate(scales)}
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers()), **own}

    def _note(self, text: str) -> None:
        self.notes.append(text)
        warnings.warn(text, TrainingWarning, stacklevel=4)

    def _note_unreached(self) -> None:
        reached = {
            id(tensor)
            for derivation in self._start.prepared.captured.derivations.values()
            for tensor in map(own_of(self.model), own_names(derivation))
        }
        names = [n for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in reached]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            self.notes.append(f"no output of eval mode depends on {shown}: they get no gradient")

    # The artifact.

    def export(
        self,
        *,
        output: str | Path | None = None,
        dynamic_batch: bool = False,
        dynamic_shapes: Any = None,
        evaluate: Callable[[Session], float] | None = None,
        max_drop: float = 0.01,
        tolerance: Tolerance | None = None,
        min_placement: float | None = None,
        min_speedup: float | None = None,
        profile: bool = True,
        strict: bool = True,
        progress: bool = True,
        task: Task | None = None,
    ) -> Artifact:
        """Export what was trained; arguments as those of `deploykit.export`, and `task` in place of `evaluate`.

        The model is captured again with the trained parameters and placed with the ranges of the training; that graph
        must equal the trained one bit for bit on the example inputs. Parity is then against the trained graph.

        Raises:
            ConversionError: the graph is not the trained one.
            DeploykitError: as `deploykit.export`.
        """
        start = self._start
        goals = Goals(tolerance, min_placement, min_speedup)
        plan = make_plan(self.model, start.request, output=output, goals=goals, profile=profile)
        task = task or (Task(evaluate, max_drop) if evaluate is not None else start.task)
        steps = Steps(enabled=progress)
        with steps.step("capture"):
            prepared = self.prepared(dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes)
        run = fitted(start.run, prepared.reference)
        return published(plan, lambda: prepared, run, task=task, steps=steps, strict=strict)

    def prepared(self, *, dynamic_batch: bool = False, dynamic_shapes: Any = None) -> Prepared:
        """The model captured again with its parameters of the moment, placed as it was trained.

        Raises:
            ConversionError: the placed graph is not the trained one, bit for bit, on the example inputs.
        """
        start = self._start
        hold_masks(self.model)
        with plain(self.model) as module:
            captured = capture(
                module,
                example_inputs=start.example_inputs,
                dynamic_batch=dynamic_batch,
                dynamic_shapes=dynamic_shapes,
                trainable=True,
            )
        adapted = start.plugin.adapt(captured, start.request)
        check_names(start.prepared, adapted)
        graph = self._with_learned_ranges()
        kept = graph.kept(own_of(self.model))  # the artifact's reference stays, whatever is trained on
        prepared = replace(graph.prepared, captured=adapted, reference=captured, trained=kept)
        simulated = simulation_of(start.plugin, prepared)
        check_equal(prepared, simulated, graph, kept.own, captured.example_inputs, "after")
        return prepared

    def _with_learned_ranges(self) -> LiveGraph:
        """The graph that was trained, placed with the ranges that were learned: int32 biases follow their scales."""
        scales, before = self.graph.scales, self._start.prepared
        if scales is None:
            return self.graph
        found = scales.methods(before.statistics.statistics)
        prepared = replace(before, methods={**before.methods, **found})
        return LiveGraph(prepared, simulation_of(self._start.plugin, prepared))
